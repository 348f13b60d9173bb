"""The operator FlexAttention of ai.onnx.preview: attention with functions of the whole score tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array, dtype_name
from gqa.attention import attention as attend
from gqa.dtypes import dtype_named, name_of
from gqa.onnx.schema import check_names, check_precision, check_type_variable, grouped_shapes
from gqa.onnx.scores import scores, softmax, weighted_values
from gqa.shapes import AttentionShapes, Shape, check_float

Modifier = Callable[[Array], Array]


def flex_attention(
    Q: Array,
    K: Array,
    V: Array,
    *,
    scale: float | None = None,
    softmax_precision: int | None = None,
    score_mod: Any = None,
    prob_mod: Any = None,
) -> Array:
    """The operator FlexAttention of ai.onnx.preview: prob_mod(softmax(score_mod(scale * Q @ K.T))) @ V.

    Parameters
    ----------
    Q : ndarray, shape (B, Hq, S, D)
        float32, float64, float16 or bfloat16.
    K, V : ndarray, shape (B, Hkv, T, D) and (B, Hkv, T, Dv)
        Of Q's dtype; Hq a multiple of Hkv.
    scale : float, optional
        Default 1 / sqrt(D).
    softmax_precision : {1, 10, 11, 16}, optional
        TensorProto code of the type of scores and probabilities; default float64 for a float64 Q, else float32.
    score_mod, prob_mod : callable or onnx.GraphProto, optional
        From an array (B, Hq, S, T) of the scores, or the probabilities, to one of the same shape and dtype. A graph
        has one input and one output, uses nothing from outside, and its nodes are of the newest opsets that the
        installed onnx knows. -inf from score_mod masks; what prob_mod returns is not normalised again.

    Returns
    -------
    ndarray, shape (B, Hq, S, Dv)
        Of Q's dtype. A row whose scores are all -inf is 0.

    Raises
    ------
    TypeError
        For an argument of a wrong type or dtype, also of what a modifier returns.
    ValueError
        For shapes that do not fit, also of what a modifier returns; for values out of range.

    Notes
    -----
    Follows https://onnx.ai/onnx/operators/onnx_aionnxpreview_FlexAttention.html, which leaves open what a row of -inf
    gives. A modifier sees all scores, so they take memory for B x Hq x S x T numbers; without modifiers they do not,
    and this is :func:`gqa.attention`.

    Examples
    --------
    >>> import gqa.onnx, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> Q, K, V = rng.standard_normal((3, 1, 2, 4, 8), np.float32)
    >>> causal = np.where(np.tri(4, dtype=bool), np.float32(0), np.float32(-np.inf))
    >>> Y = gqa.onnx.flex_attention(Q, K, V, score_mod=lambda x: x + causal)
    >>> np.allclose(Y, gqa.attention(Q, K, V, causal=True), atol=1e-6)
    True
    """
    arrays = {"Q": as_array("Q", Q), "K": as_array("K", K), "V": as_array("V", V)}
    dtypes = {name: dtype_name(name, x) for name, x in arrays.items()}
    sizes = _check({name: x.shape for name, x in arrays.items()}, dtypes, scale)
    precision = dtype_named(check_precision(softmax_precision) or ("float64" if Q.dtype == np.float64 else "float32"))
    in_double = Q.dtype == np.float64 or precision == np.float64
    q = Q.astype(np.float64) if in_double else Q
    if score_mod is None and prob_mod is None:
        result: Array = attend(q, K, V, scale=scale)
        with np.errstate(over="ignore"):
            return result.astype(Q.dtype, copy=False)

    score_modifier, prob_modifier = (
        _modifier(name, x) for name, x in (("score_mod", score_mod), ("prob_mod", prob_mod))
    )
    compute = np.float64 if in_double else np.float32
    with np.errstate(all="ignore"):
        x = scores(q.astype(compute), [K], 1 / np.sqrt(max(sizes.head_dim, 1)) if scale is None else scale)
        x = score_modifier(x.astype(precision, copy=False))
        x = softmax(x.astype(compute, copy=False))
        x = prob_modifier(x.astype(precision, copy=False))
        return weighted_values(x.astype(compute, copy=False), V.astype(compute)).astype(Q.dtype)


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


def _modifier(name: str, modifier: Any) -> Modifier:
    """The modifier as a function that checks what comes back."""
    if modifier is None:
        return lambda x: x
    if type(modifier).__name__ == "GraphProto":
        from gqa.onnx.evaluator import graph_function

        modifier = graph_function(name, modifier)
    elif not callable(modifier):
        raise TypeError(f"{name} is a {type(modifier).__name__}, expected a function or an onnx.GraphProto")

    def checked(x: Array) -> Array:
        shape, dtype = x.shape, x.dtype
        y = as_array(f"what {name} returns", modifier(x))
        if y.dtype != dtype:
            raise TypeError(f"{name} returns dtype {y.dtype}, expected {dtype} as it was given")
        if y.shape != shape:
            raise ValueError(f"{name} returns shape {y.shape}, expected {shape} as it was given")
        return y

    return checked
