"""What layers hand on backwards: pullbacks, from gradients by a result to those by what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gqa.arguments import Array
from gqa.gradients import attention_vjp
from gqa.scaled_dot_product import attention

ParameterGradients = dict[str, dict[str, Array]]  # by layer and parameter, as MultiHeadAttention.load takes parameters
Pullback = Callable[[Array], tuple[Array, ParameterGradients]]  # the gradient by a result: by the input, by parameters


class MultiHeadAttentionGradients(NamedTuple):
    """Gradients by the arguments of a call, each of its shape and dtype, and by the parameters of the layer.

    Inputs that were left out have None: what goes back through them is part of the gradient of the input that stood in
    for them. Parameters are a nested dict as :meth:`MultiHeadAttention.load` takes them.
    """

    inputs_q: Array
    inputs_k: Array | None
    inputs_v: Array | None
    parameters: ParameterGradients


def composed(inner: Pullback, outer: Pullback) -> Pullback:
    """The pullback of outer(inner(x)), by those of its two layers."""

    def pullback(dy: Array) -> tuple[Array, ParameterGradients]:
        dx, of_outer = outer(dy)
        dx, of_inner = inner(dx)
        return dx, of_inner | of_outer

    return pullback


def attended(
    query: Array, key: Array, value: Array, options: dict[str, Any]
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """Attention, and its pullback: from the gradient by the result to those by query, key and value."""
    out, lse = attention(query, key, value, return_lse=True, **options)

    def pullback(dout: Array) -> tuple[Array, Array, Array]:
        return attention_vjp(dout, query, key, value, out, lse, **options)[:3]

    return out, pullback


def of_inputs(
    gradients: list[Array], inputs: list[Array], left_out: list[bool]
) -> tuple[Array, Array | None, Array | None]:
    """Gradients (dq, dk, dv) with those of inputs that were left out added to the one before; of each input's dtype."""
    gradients = list(gradients)
    for i in (2, 1):
        if left_out[i]:
            gradients[i - 1] = gradients[i - 1] + gradients[i]
    dq, dk, dv = (dx.reshape(x.shape).astype(x.dtype, copy=False) for dx, x in zip(gradients, inputs))
    return dq, None if left_out[1] else dk, None if left_out[2] else dv
