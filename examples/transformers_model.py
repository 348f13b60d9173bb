"""A model of Hugging Face transformers on gqa generates and learns what it does on PyTorch's attention.

    python transformers_model.py                          a small Llama with random weights
    python transformers_model.py --layers 16 --hidden 2048 --heads 32 --kv-heads 8 --prompt 2048 --dtype bfloat16
    python transformers_model.py --window 128 --cache int8

Needs `pip install 'gqa[transformers]'`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

import gqa.transformers


def random_model(arguments: argparse.Namespace) -> Any:
    """A Llama, or with a window a Mistral, that knows nothing yet."""
    sizes = {
        "vocab_size": 512,
        "hidden_size": arguments.hidden,
        "intermediate_size": 3 * arguments.hidden,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "num_key_value_heads": arguments.kv_heads,
        "max_position_embeddings": 2**17,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    if arguments.window:
        config = transformers.MistralConfig(**sizes, sliding_window=arguments.window)
        model = transformers.MistralForCausalLM(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    return model.to(getattr(torch, arguments.dtype)).eval()


def generate(model: Any, implementation: str, prompt: torch.Tensor, count: int, cache: Any = None) -> Sequence[int]:
    """The `count` likeliest tokens after a prompt; prints how long they took."""
    model.set_attn_implementation(implementation)
    start = time.perf_counter()
    tokens = model.generate(prompt, past_key_values=cache, max_new_tokens=count, do_sample=False, pad_token_id=0)
    kind = type(cache).__name__ if cache is not None else "DynamicCache"
    print(f"  {implementation}, {kind}: {time.perf_counter() - start:.2f} s")
    generated: list[int] = tokens[0, prompt.shape[1] :].tolist()
    return generated


def train(model: Any, implementation: str, text: torch.Tensor, steps: int) -> list[float]:
    """Some steps of learning a text; returns the loss of each, and leaves the model as it was."""
    model.set_attn_implementation(implementation)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(text, labels=text, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval().load_state_dict(before)
    print(f"  {implementation}: loss {' '.join(f'{x:.4f}' for x in losses)}")
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--window", type=int, default=0, help="tokens that a query sees, itself included; 0: all")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--steps", type=int, default=4, help="of training")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cache", default=None, choices=("float32", "bfloat16", "float16", "int8"))
    arguments = parser.parse_args(argv)

    gqa.transformers.register()
    model = random_model(arguments)
    prompt = torch.randint(1, 512, (1, arguments.prompt))

    print(f"{arguments.new} tokens after {arguments.prompt}")
    expected = generate(model, "sdpa", prompt, arguments.new)
    generate(model, "gqa", prompt, arguments.new)
    cache = gqa.transformers.KVCache(model.config, dtype=arguments.cache)
    result = generate(model, "gqa", prompt, arguments.new, cache)
    alike = sum(x == y for x, y in zip(result, expected))
    print(f"  {alike} of {len(expected)} tokens are the same")

    print(f"{arguments.steps} steps of training on {arguments.prompt} tokens")
    for implementation in ("sdpa", "gqa"):
        train(model, implementation, prompt, arguments.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
