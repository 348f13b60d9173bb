"""gqa under the models of Hugging Face transformers: one line puts it there, and a cache that is attended in place."""

from __future__ import annotations

from gqa.transformers.cache import KVCache
from gqa.transformers.registration import register

__all__ = ["KVCache", "register"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
