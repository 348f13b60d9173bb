"""Attention with functions of the whole tensors of scores and of probabilities: what FlexAttention computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, dtype_name
from gqa.dtypes import dtype_named, name_of
from gqa.onnx.modified_probabilities import attend_probabilities
from gqa.onnx.schema import AttentionShapes, check_names, check_precision, check_type_variable, grouped_shapes
from gqa.onnx.scores import scores, softmax, weighted_values
from gqa.rules import default_scale
from gqa.scaled_dot_product import attention
from gqa.scores.program import Program
from gqa.shapes import Shape, check_float

Modifier = Callable[[Array], Array]


def modified_attention(
    Q: AnyArray,
    K: AnyArray,
    V: AnyArray,
    *,
    scale: float | None = None,
    softmax_precision: int | None = None,
    score_mod: Modifier | Program | None = None,
    prob_mod: Modifier | Program | None = None,
    num_threads: int | None = None,
) -> Array:
    """FlexAttention with modifiers that are functions or programs; the arguments are those of the operator."""
    arrays = {"Q": as_array("Q", Q), "K": as_array("K", K), "V": as_array("V", V)}
    Q, K, V = arrays.values()
    dtypes = {name: dtype_name(name, x) for name, x in arrays.items()}
    sizes = _check({name: x.shape for name, x in arrays.items()}, dtypes, scale)
    precision = dtype_named(check_precision(softmax_precision) or ("float64" if Q.dtype == np.float64 else "float32"))
    in_double = Q.dtype == np.float64 or precision == np.float64
    q = Q.astype(np.float64) if in_double else Q
    program, of_probabilities = (_program(x, (*Q.shape[:3], K.shape[2]), precision) for x in (score_mod, prob_mod))
    if (score_mod is None or program is not None) and (prob_mod is None or of_probabilities is not None):
        with np.errstate(all="ignore"):
            if of_probabilities is None:
                result: Array = attention(
                    q, K, V, scale=scale, score_mod=program, query_offset=0, num_threads=num_threads
                )
            else:
                result = attend_probabilities(q, K, V, program, of_probabilities, scale=scale, num_threads=num_threads)
            return result.astype(Q.dtype, copy=False)
    if isinstance(score_mod, Program) or isinstance(prob_mod, Program):
        name, other = ("score_mod", "prob_mod") if isinstance(score_mod, Program) else ("prob_mod", "score_mod")
        raise ValueError(f"{name} is a program, but {other} is not, nor a graph that could be one: expected both")

    score_modifier, prob_modifier = _checked("score_mod", score_mod), _checked("prob_mod", prob_mod)
    compute = np.float64 if in_double else np.float32
    with np.errstate(all="ignore"):
        x = scores(q.astype(compute), [K], default_scale(sizes.head_dim) if scale is None else scale)
        x = score_modifier(x.astype(precision, copy=False))
        x = softmax(x.astype(compute, copy=False))
        x = prob_modifier(x.astype(precision, copy=False))
        return weighted_values(x.astype(compute, copy=False), V.astype(compute)).astype(Q.dtype)


def _program(modifier: Modifier | Program | None, shape: Shape, precision: np.dtype[Any]) -> Program | None:
    """What a modifier does to each score, or probability, by itself, where that can be said."""
    if isinstance(modifier, Program):
        return modifier
    # Scores of half precision would be rounded before they are modified.
    elementwise = getattr(modifier, "program", None) if precision.itemsize >= 4 else None
    return None if elementwise is None else elementwise(shape, precision)


def infer(shapes: dict[str, Shape], dtypes: dict[str, Any], attrs: dict[str, Any]) -> dict[str, tuple[Shape, str]]:
    """The output of FlexAttention."""
    check_names(attrs, (), ("scale", "softmax_precision", "score_mod", "prob_mod"), "attribute")
    names = {name: name_of(dtype) for name, dtype in dtypes.items()}
    sizes = _check(shapes, names, attrs.get("scale"))
    check_precision(attrs.get("softmax_precision"))
    return {"Y": (sizes.out, names["Q"])}


def _check(shapes: dict[str, Shape], dtypes: dict[str, str], scale: Any) -> AttentionShapes:
    check_names(shapes, ("Q", "K", "V"), ())
    check_type_variable(dtypes, "Q", "K", "V")
    if scale is not None:
        check_float("scale", scale)
    return grouped_shapes(shapes)


def _checked(name: str, modifier: Modifier | None) -> Modifier:
    """The modifier as a function that checks what comes back."""
    if modifier is None:
        return lambda x: x

    def checked(x: Array) -> Array:
        shape, dtype = x.shape, x.dtype
        y = as_array(f"what {name} returns", modifier(x))
        if y.dtype != dtype:
            raise TypeError(f"{name} returns dtype {y.dtype}, expected {dtype} as it was given")
        if y.shape != shape:
            raise ValueError(f"{name} returns shape {y.shape}, expected {shape} as it was given")
        return y

    return checked
