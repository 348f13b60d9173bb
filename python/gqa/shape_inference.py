"""What the functions for attention return, from shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gqa import _core
from gqa.arguments import as_array, dtype_name, int_array, lengths_array
from gqa.dtypes import name_of
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.scores.tracing import bind
from gqa.shapes import Shape, check_int, check_shape
from gqa.varlen import check_ends, check_packed, packed_ends, packed_mask_shape

Described = tuple[Shape, str]  # shape and name of the dtype, which stand for a tensor that is not there
Arguments = dict[str, Any]  # arrays and other options by name, some arrays described
_MOST = 2**62


def infer_shapes(
    shapes: dict[str, Shape], dtypes: dict[str, Any], *, function: str = "attention", **options: Any
) -> dict[str, Described]:
    """The shapes and dtypes that :func:`attention` or its relatives return, from shapes and dtypes alone.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        By argument name: those of the tensors that the function takes (for attention q, and k and v, past_key and
        past_value, or all four); mask, sinks, out, kv_lengths, query_offset, cu_seqlens_q and cu_seqlens_k if they
        are arrays.
    dtypes : dict of str to dtype
        By argument name; :class:`gqa.Quantized` for a quantised argument.
    function : {"attention", "varlen_attention", "attention_vjp", "varlen_attention_vjp"}
        Whose results they are.
    **options
        As those of the function: layout, causal, window, scale, softcap, ... and any of the arrays themselves.

    Returns
    -------
    dict
        ``{"out": (shape, dtype name), "lse": (shape, dtype name)}``, or, of gradients, ``{"dq": ..., "dk": ..., "dv":
        ...}`` with "dmask" and "dsinks" where the call would give those.

    Raises
    ------
    TypeError, ValueError
        What the function would raise, as far as shapes and dtypes show it, and TypeError for an option that it does not
        have.

    Examples
    --------
    >>> import gqa
    >>> shapes = {"q": (2, 8, 1, 64), "k": (2, 2, 128, 64), "v": (2, 2, 128, 32)}
    >>> gqa.infer_shapes(shapes, {"q": "float16", "k": "float32", "v": "float32"})
    {'out': ((2, 8, 1, 32), 'float16'), 'lse': ((2, 8, 1), 'float32')}
    """
    if function not in _FUNCTIONS:
        raise ValueError(f"function is {function!r}, expected one of {', '.join(map(repr, _FUNCTIONS))}")
    f = _FUNCTIONS[function]
    described = {name: _described(name, shapes[name], dtypes) for name in shapes}
    for name in described:
        if name not in (*f.tensors, *f.arrays):
            raise TypeError(f"unknown argument {name!r}, expected one of {', '.join((*f.tensors, *f.arrays))}")
        if name in options:
            raise TypeError(f"{name} is given both as a shape and as an option")
    for name in options:
        if name not in (*f.options, *f.arrays):
            names = dict.fromkeys((*f.options, *f.arrays))
            raise TypeError(f"unknown option {name!r}, expected one of {', '.join(names)}")
    for name in f.needed:
        if name not in described and name not in options:
            raise TypeError(f"{name} is missing")
    arguments = options | {name: described[name] for name in f.arrays if name in described}
    return f.infer({name: described.get(name) for name in f.tensors}, arguments)


def _described(name: str, shape: Any, dtypes: dict[str, Any]) -> Described:
    """The shape and dtype of an argument, checked."""
    if name not in dtypes:
        raise TypeError(f"{name} has a shape but no dtype")
    dtype = "quantized" if dtypes[name] is Quantized else name_of(dtypes[name], name)
    sizes = tuple(check_int(f"the shape of {name}", n, 0) for n in shape)
    if any(n > _MOST for n in sizes):
        raise ValueError(f"{name} has shape {sizes}, expected sizes of at most {_MOST}")
    return sizes, dtype


def _options(arguments: Arguments, *, slope: bool = False, **others: Any) -> Options:
    """What is left of the arguments, as the core takes it."""
    arguments = dict(arguments)
    program = bind(arguments.pop("score_mod", None), arguments.pop("mask_mod", None), slope=slope)
    return Options(program=program, **others, **arguments)


def _attention(tensors: Arguments, arguments: Arguments) -> dict[str, Described]:
    query_offset, kv_lengths = (arguments.pop(name, None) for name in ("query_offset", "kv_lengths"))
    q, k, v, past_key, past_value = tensors.values()
    out, lse = _core.infer_shapes((q, k, v, past_key, past_value), query_offset, kv_lengths, _options(arguments))
    return {"out": out, "lse": lse}


def _varlen_attention(tensors: Arguments, arguments: Arguments) -> dict[str, Described]:
    mask_shape = _packed_mask_shape(tensors, arguments)
    stores = (("k", tensors["k"], "v", tensors["v"]),)
    out, lse = _core.infer_sequences(tensors["q"], stores, mask_shape, _options(arguments, layout="bshd"))
    return {"out": out, "lse": (lse[0][::-1], lse[1])}


def _attention_vjp(tensors: Arguments, arguments: Arguments) -> dict[str, Described]:
    query_offset, kv_lengths = (arguments.pop(name, None) for name in ("query_offset", "kv_lengths"))
    mask_grad = arguments.pop("mask_grad", False)
    dout, q, k, v, out, lse, dlse = tensors.values()
    t = dout, q, k, v, out, lse, dlse
    _core.check_attention_vjp(t, query_offset, kv_lengths, mask_grad, _options(arguments, slope=True))
    return _gradients(tensors, arguments, mask_grad)


def _varlen_attention_vjp(tensors: Arguments, arguments: Arguments) -> dict[str, Described]:
    mask_shape = _packed_mask_shape(tensors, arguments)
    dout, q, k, v, out, lse, dlse = tensors.values()
    for name, x in (("lse", lse), ("dlse", dlse)):
        if x is not None:
            check_shape(name, x[0], (q[0][1], q[0][0]))
    turned = dout, q, k, v, out, (lse[0][::-1], lse[1]), dlse and (dlse[0][::-1], dlse[1])
    _core.check_sequences_vjp(turned, mask_shape, _options(arguments, slope=True, layout="bshd"))
    return _gradients(tensors, arguments, mask_grad=False)


def _gradients(tensors: Arguments, arguments: Arguments, mask_grad: Any) -> dict[str, Described]:
    """Each of the shape and dtype of its argument, once those have been checked."""
    results = {f"d{name}": tensors[name] for name in ("q", "k", "v")}
    for name, wanted in (("mask", mask_grad), ("sinks", True)):
        x = arguments.get(name)
        if wanted and x is not None:
            if not _is_described(x):
                x = as_array(name, x)
                x = x.shape, dtype_name(name, x)
            results[f"d{name}"] = x
    return results


def _is_described(x: Any) -> bool:
    """Whether x stands for an array; a tuple may also be a list of integers."""
    return type(x) is tuple and len(x) == 2 and type(x[0]) is tuple


def _packed_mask_shape(tensors: Arguments, arguments: Arguments) -> tuple[int, int, int]:
    """What a mask broadcasts to, but for the heads; takes the ends and lengths of sequences out of the arguments.

    Where only the shapes of those are known, so is only the number of sequences: any mask has as many queries and keys.
    """
    ends, kv_lengths = [arguments.pop(name) for name in _ENDS], arguments.pop("kv_lengths", None)
    shapes = [tensors[name][0] for name in ("q", "k", "v")]
    most_keys: Any = _MOST
    if any(map(_is_described, ends)):
        for name, shape in zip("qkv", shapes):
            check_packed(name, shape)
        first, second = (_shape_of_integers(name, x) for name, x in zip(_ENDS, ends))
        check_ends(_ENDS[0], first)
        check_shape(_ENDS[1], second, first)
        mask = arguments.get("mask")
        sizes = () if mask is None else mask[0] if _is_described(mask) else as_array("mask", mask).shape
        queries, keys = (1, 1, *sizes)[-2:]
        mask_shape = first[0] - 1, queries, keys
    else:
        q_ends, k_ends = packed_ends(shapes[0], shapes[1], shapes[2], *ends)
        mask_shape = packed_mask_shape(q_ends, k_ends)
        most_keys = np.diff(k_ends)
    if _is_described(kv_lengths):
        check_shape("kv_lengths", _shape_of_integers("kv_lengths", kv_lengths), mask_shape[:1])
    elif kv_lengths is not None:
        lengths_array("kv_lengths", kv_lengths, mask_shape[:1], most_keys)
    return mask_shape


def _shape_of_integers(name: str, x: Any) -> Shape:
    """The shape of integers, or of what stands for them."""
    if not _is_described(x):
        shape: Shape = int_array(name, x).shape
    else:
        shape, dtype = x
        if not dtype.startswith(("int", "uint")):
            raise TypeError(f"{name} has dtype {dtype}, expected integers")
    return shape


class _Function(NamedTuple):
    """What a function takes, by name, and how its results are inferred."""

    infer: Callable[[Arguments, Arguments], dict[str, Described]]
    tensors: tuple[str, ...]
    needed: tuple[str, ...]
    arrays: tuple[str, ...]  # which may be described, or given as options
    options: tuple[str, ...]


_GRADIENT_TENSORS = ("dout", "q", "k", "v", "out", "lse", "dlse")
_COMMON = ("causal", "window", "scale", "softcap", "num_threads", "score_mod", "mask_mod")
_RESULT = ("out_dtype", "return_lse")
_ENDS = ("cu_seqlens_q", "cu_seqlens_k")
_FUNCTIONS = {
    "attention": _Function(
        _attention, ("q", "k", "v", "past_key", "past_value"), ("q",),
        ("mask", "sinks", "out", "query_offset", "kv_lengths"), ("layout", *_COMMON, *_RESULT),
    ),
    "varlen_attention": _Function(
        _varlen_attention, ("q", "k", "v"), ("q", "k", "v", *_ENDS),
        ("mask", "sinks", "out", *_ENDS, "kv_lengths"), (*_COMMON, *_RESULT),
    ),
    "attention_vjp": _Function(
        _attention_vjp, _GRADIENT_TENSORS, _GRADIENT_TENSORS[:-1],
        ("mask", "sinks", "query_offset", "kv_lengths"), ("layout", *_COMMON, "mask_grad"),
    ),
    "varlen_attention_vjp": _Function(
        _varlen_attention_vjp, _GRADIENT_TENSORS, (*_GRADIENT_TENSORS[:-1], *_ENDS),
        ("mask", "sinks", *_ENDS, "kv_lengths"), _COMMON,
    ),
}  # fmt: skip
