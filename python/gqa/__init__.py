"""Grouped-query attention for NumPy at native speed.

What `dir(gqa)` lists is public, and so are the modules `gqa.nn`, `gqa.onnx`, `gqa.distributed` and, for programs with
those libraries, `gqa.jax`, `gqa.torch` and `gqa.transformers`; every other module is gqa's own.

`SPLIT_KEYS` is the number of keys at whose multiples shards, and other pieces of a sequence's keys, should meet: there
attention is cut and merged anyway, so that such pieces can be put together to the bits of the whole.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gqa._core import SPLIT_KEYS
from gqa.caches.kv import KVCache
from gqa.caches.paged import PagedKVCache
from gqa.gradients import AttentionGradients, attention_vjp, varlen_attention_vjp
from gqa.quantization import Quantized, quantize
from gqa.rotary_embedding import rotary, rotary_tables
from gqa.runtime import get_num_threads, info, read_environment, set_num_threads
from gqa.scaled_dot_product import attention
from gqa.scores.tracing import trace
from gqa.shape_inference import infer_shapes
from gqa.states import merge_states
from gqa.varlen import varlen_attention

if TYPE_CHECKING:
    from gqa import distributed as distributed
    from gqa import jax as jax
    from gqa import nn as nn
    from gqa import onnx as onnx
    from gqa import torch as torch
    from gqa import transformers as transformers

read_environment()
del read_environment

__version__ = info()["version"]
__all__ = [
    "SPLIT_KEYS",
    "AttentionGradients",
    "KVCache",
    "PagedKVCache",
    "Quantized",
    "attention",
    "attention_vjp",
    "get_num_threads",
    "infer_shapes",
    "info",
    "merge_states",
    "quantize",
    "rotary",
    "rotary_tables",
    "set_num_threads",
    "trace",
    "varlen_attention",
    "varlen_attention_vjp",
]


_ON_FIRST_USE = ("nn", "onnx")  # most programs need neither
_ADAPTERS = ("distributed", "jax", "torch", "transformers")  # not listed, as their libraries may not be there

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in (*_ON_FIRST_USE, *_ADAPTERS):
            return importlib.import_module(f"gqa.{name}")
        raise AttributeError(f"module 'gqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ON_FIRST_USE, *(name for name in globals() if name.startswith("__"))])
