"""How XLA makes a call: by the core itself, or through Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gqa import _core

_TARGETS = {"gqa_attention": _core.XLA_ATTENTION, "gqa_attention_vjp": _core.XLA_GRADIENTS}


def called(
    name: str, attributes: dict[str, Any] | None, function: Callable[..., None], results: Sequence[Any], operands: Any
) -> Any:
    """The results of a call, each a shape and a dtype.

    name, attributes: the core's own function and what it is told; None if that does not do for this call, which is then
    the function's, called with a context, the results' memory and the operands.
    """
    described = tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in results)
    if attributes is not None and is_target(name):
        return jax.ffi.ffi_call(name, described, vmap_method="expand_dims")(*operands, **attributes)
    from jax.experimental.buffer_callback import buffer_callback

    return buffer_callback(function, described, vmap_method="expand_dims")(*operands)


@functools.cache
def is_target(name: str) -> bool:
    """Whether XLA calls the core's function of that name; otherwise it calls Python.

    It does not where gqa was built without jaxlib's headers, nor where this jaxlib does not take what was built with
    those of another one. It is asked once it runs: what it refuses at its start would leave JAX without the CPU.
    """
    if _TARGETS[name] is None:
        return False
    try:
        jax.devices("cpu")
        jax.ffi.register_ffi_target(name, _TARGETS[name], platform="cpu")
    except Exception:
        return False
    return True
