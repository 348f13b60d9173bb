"""Neural network layers over NumPy parameters, with attention on gqa's native kernels; and attention for flax."""

from gqa.nn.flax_attention import attention_fn
from gqa.nn.gradients import MultiHeadAttentionGradients
from gqa.nn.multi_head_attention import MultiHeadAttention

__all__ = ["MultiHeadAttention", "MultiHeadAttentionGradients", "attention_fn"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
