"""The operator FlexAttention of ai.onnx.preview: attention with functions of the whole score tensor."""

from __future__ import annotations

from typing import Any

from gqa.arguments import AnyArray, Array
from gqa.onnx.modified_attention import Modifier, modified_attention
from gqa.scores.program import Program


def flex_attention(
    Q: AnyArray,
    K: AnyArray,
    V: AnyArray,
    *,
    scale: float | None = None,
    softmax_precision: int | None = None,
    score_mod: Any = None,
    prob_mod: Any = None,
    num_threads: int | None = None,
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
        installed onnx knows. -inf from score_mod masks; what prob_mod returns is not normalised again. Both may
        also be programs of :func:`gqa.trace`, whose q_idx counts from 0.
    num_threads : int, optional
        As in :func:`gqa.attention`, without modifiers; what is computed on whole arrays is NumPy's.

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
    gives.

    Programs, and graphs that compute each score by itself, run within :func:`gqa.attention`: no memory is taken for
    scores. Such a graph consists of arithmetic, comparisons, Where, Cast and functions of single numbers, of indices
    made with Shape, Range, CumSum, Gather, Unsqueeze, Reshape, Expand and the like, and of constants; softmax_precision
    is not that of half precision. With a prob_mod there are two passes over the scores, one more where it may give
    negative numbers, and one more where scores are large. Other graphs, and callables, see all scores, which take
    memory for B x Hq x S x T numbers; where one of the two is of this kind, so is the other.

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
    return modified_attention(
        Q, K, V, scale=scale, softmax_precision=softmax_precision,
        score_mod=score_mod if isinstance(score_mod, Program) else _modifier("score_mod", score_mod),
        prob_mod=prob_mod if isinstance(prob_mod, Program) else _modifier("prob_mod", prob_mod),
        num_threads=num_threads,
    )  # fmt: skip


def _modifier(name: str, modifier: Any) -> Modifier | None:
    """The modifier as a function."""
    if type(modifier).__name__ == "GraphProto":  # told by name, since most programs do without the package onnx
        from gqa.onnx.models.evaluator import graph_function

        return graph_function(name, modifier)
    if modifier is not None and not callable(modifier):
        raise TypeError(f"{name} is a {type(modifier).__name__}, expected a function or an onnx.GraphProto")
    function: Modifier | None = modifier
    return function
