"""PyTorch's tensors as NumPy's arrays, and back: the same memory, bfloat16 included, in well under a microsecond."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from gqa.arguments import Array
from gqa.dtypes import FLOATS, dtype_named

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
FLOAT_DTYPES = {name: getattr(torch, name) for name in FLOATS}
_SHARED = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}) | {
    dtype for name, dtype in FLOAT_DTYPES.items() if name != "bfloat16"
}
_FLOATS = frozenset(FLOAT_DTYPES.values())


@functools.cache
def _numpy_bfloat16() -> np.dtype[Any] | None:
    try:
        return dtype_named("bfloat16")
    except ModuleNotFoundError:
        return None


def as_viewed(x: Any) -> Any:
    """The memory of a tensor as an array; anything else, and what NumPy cannot view, is returned as it is.

    The latter is left to the core: it reads any tensor by ``__dlpack__``, bfloat16 without ml_dtypes as well, which
    takes ten times as long, and refuses by name what lies elsewhere.
    """
    if type(x) not in PLAIN or not x.is_cpu or x.is_neg():
        return x
    if x.requires_grad:
        x = x.detach()
    if x.dtype in _SHARED:
        return x.numpy() if x.layout is torch.strided else x
    if x.dtype is torch.bfloat16 and x.layout is torch.strided and _numpy_bfloat16() is not None:
        return x.view(torch.int16).numpy().view(_numpy_bfloat16())
    return x


def as_read(x: Any) -> Any:
    """What the core is given of x: a tensor of floats itself, which it reads by DLPack's functions of C."""
    if type(x) not in PLAIN:
        return x
    if x.dtype not in _FLOATS:
        return as_viewed(x)
    return x if type(x) is torch.Tensor and not x.requires_grad else x.detach()


def as_tensor(x: Array) -> torch.Tensor:
    """The memory of an array as a tensor."""
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def require_tensor(name: str, x: Any) -> None:
    """TypeError unless x is a tensor of PyTorch."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor")


def named_dtype(dtype: Any) -> Any:
    """The name of a dtype of PyTorch; anything else as it is."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
