"""gqa under a name of transformers' attention implementations."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from gqa.transformers.attention_interface import attention_forward
from gqa.transformers.masks import described_mask


def register(name: str = "gqa") -> None:
    """Make gqa one of the attention implementations of transformers.

    Then ``model.set_attn_implementation("gqa")``, or ``attn_implementation="gqa"`` where a model is made, puts it under
    any model that leaves its attention to transformers' interface.

    Parameters
    ----------
    name : str
        The implementation's name.

    Notes
    -----
    Causal and sliding-window masks and padding reach the kernel as numbers, without an array of queries x keys; other
    masks (images within text, chunks, packed sequences, compiled models) as the arrays that transformers makes. Soft
    caps, sinks, position biases and values of another size than keys are the kernel's own. With dropout, attention is
    computed by operators of PyTorch. Rows without keys are 0, where ``eager`` gives them the mean of the values; no
    weights are returned (``output_attentions``).

    Examples
    --------
    >>> import gqa.transformers, torch, transformers
    >>> gqa.transformers.register()
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    ...     num_key_value_heads=2,
    ... )
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> with torch.no_grad():
    ...     expected = model(torch.arange(8)[None]).logits
    ...     model.set_attn_implementation("gqa")
    ...     torch.testing.assert_close(model(torch.arange(8)[None]).logits, expected, rtol=0, atol=2e-5)
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}, expected a string")
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, described_mask)
