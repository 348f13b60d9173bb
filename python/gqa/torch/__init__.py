"""Attention on PyTorch's tensors on the CPU, read and written where they lie: eagerly and under torch.compile."""

from __future__ import annotations

import gqa.torch.backward
import gqa.torch.mapped
import gqa.torch.operators  # noqa: F401 (these give the operators what they do)
from gqa.torch.kv_caches import KVCache, PagedKVCache
from gqa.torch.packed import varlen_attention
from gqa.torch.scaled_dot_product import attention, scaled_dot_product_attention

__all__ = ["KVCache", "PagedKVCache", "attention", "scaled_dot_product_attention", "varlen_attention"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
