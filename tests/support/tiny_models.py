"""Models of transformers with random weights, too small to be anything but arithmetic."""

import torch
import transformers

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
SLIDING = {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SINKS = {"sliding_window": 9, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": ROPE}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

DECODERS = {
    "Llama": {},
    "Mistral": {"sliding_window": 9},  # a window in every layer
    "Qwen3": {"head_dim": 16},  # norms of queries and keys
    "Gemma2": {**SLIDING, "attn_logit_softcapping": 5.0, "layer_types": LAYERS},
    "Gemma3": {**SLIDING, "layer_types": LAYERS},
    "GptOss": {**SINKS, "head_dim": 16, "layer_types": LAYERS},
    "DeepseekV3": LATENT,  # values of another size than keys
}
ENCODER_DECODERS = {
    "Bart": {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
        "init_std": 0.1,
    },
    "T5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1},
}


def model_named(name, **changes):
    """A model in evaluation mode, the same weights each time; scales and sinks are random as well."""
    if name in DECODERS:
        config = getattr(transformers, f"{'Gemma3Text' if name == 'Gemma3' else name}Config")
        options = {**SIZES, **DECODERS[name]}
        kind = getattr(transformers, f"{name}ForCausalLM")
    else:
        config, options = getattr(transformers, f"{name}Config"), {**SIZES, **ENCODER_DECODERS[name]}
        for unused in ("hidden_size", "intermediate_size", "num_key_value_heads", "num_hidden_layers"):
            del options[unused]
        del options["num_attention_heads"], options["initializer_range"]
        kind = getattr(transformers, f"{name}ForConditionalGeneration")
    torch.manual_seed(0)
    model = kind(config(**{**options, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def prompt(batch=2, length=30, padding=0):
    """Tokens and their attention mask; the last sequence has so many tokens of padding on its left."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, SIZES["vocab_size"], (batch, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[-1, :padding] = 0
    return tokens * mask, mask
