"""Attention on JAX arrays on the CPU, read and written where they lie: eagerly, and within jit, vmap and grad."""

from __future__ import annotations

from gqa.jax.scaled_dot_product import attention, dot_product_attention

__all__ = ["attention", "dot_product_attention"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
