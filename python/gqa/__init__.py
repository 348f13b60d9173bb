"""Grouped-query attention for NumPy at native speed."""

import importlib
from typing import Any

from gqa.attention import attention, infer_shapes
from gqa.cache import KVCache
from gqa.paged import PagedKVCache
from gqa.quantize import Quantized, quantize
from gqa.rotary import rotary, rotary_tables
from gqa.states import merge_states
from gqa.threads import get_num_threads, info, read_environment, set_num_threads
from gqa.varlen import varlen_attention

read_environment()
del read_environment

__version__ = info()["version"]
__all__ = [
    "KVCache",
    "PagedKVCache",
    "Quantized",
    "attention",
    "get_num_threads",
    "infer_shapes",
    "info",
    "merge_states",
    "quantize",
    "rotary",
    "rotary_tables",
    "set_num_threads",
    "varlen_attention",
]


def __getattr__(name: str) -> Any:
    if name in ("nn", "onnx"):  # imported on first use: most programs need neither
        return importlib.import_module(f"gqa.{name}")
    raise AttributeError(f"module 'gqa' has no attribute {name!r}")
