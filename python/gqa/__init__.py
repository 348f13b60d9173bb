"""Grouped-query attention for NumPy at native speed."""

from gqa.attention import attention, infer_shapes
from gqa.quantize import Quantized, quantize
from gqa.states import merge_states
from gqa.threads import get_num_threads, info, read_environment, set_num_threads

read_environment()
del read_environment

__version__ = info()["version"]
__all__ = [
    "Quantized",
    "attention",
    "get_num_threads",
    "infer_shapes",
    "info",
    "merge_states",
    "quantize",
    "set_num_threads",
]
