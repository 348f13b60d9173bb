"""Neural network layers over NumPy parameters, with attention on gqa's native kernels."""

from gqa.nn.multi_head_attention import MultiHeadAttention

__all__ = ["MultiHeadAttention"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
