"""Attention as JAX differentiates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from gqa import gradients
from gqa.arguments import Array
from gqa.jax.calls import TENSORS, Call, entries
from gqa.jax.custom_calls import called


@dataclass(frozen=True)
class _Gradient:
    """The gradients of one call of attention."""

    call: Call
    given: tuple[str, ...]  # what comes before the call's operands: dout, out, lse and perhaps dlse
    wanted: tuple[str, ...]  # arrays of the call: q, k, v and perhaps the mask and sinks

    def attributes(self) -> dict[str, Any] | None:
        """As those of a call."""
        attributes = self.call.attributes()
        if attributes is None:
            return None
        axes = len(self.call.out[0])
        given = [axes, axes, axes - 1, axes - 1 if "dlse" in self.given else -1]
        return attributes | {
            "own_axes": np.concatenate([np.array(given, np.int64), attributes["own_axes"]]),
            "mask_grad": "mask" in self.wanted,
            "sinks_grad": "sinks" in self.wanted,
        }

    def __call__(self, context: Any, results: Sequence[Any], *operands: Any) -> None:
        """Called by XLA with its own memory."""
        self.differentiate([np.asarray(x) for x in operands], [np.asarray(x) for x in results])

    def differentiate(self, operands: list[Array], results: list[Array]) -> None:
        """Write the results; axes in front of them are of size 1 in an operand that does not have them."""
        leading = results[0].shape[: results[0].ndim - len(self.call.out[0])]
        if leading:  # gradients of masks and sinks are sums over the batch, which must not grow
            for one, written in entries(leading[0], operands, results):
                self.differentiate(one, written)
            return
        count = len(self.given)
        arrays = dict(zip(self.given, operands)) | self.call.named(operands[count:])
        settings = {
            name: x for name, x in self.call.settings if name not in ("out_dtype", "return_lse") and x is not None
        }
        found = gradients.attention_vjp(**arrays, **settings, mask_grad="mask" in self.wanted)
        for name, x in zip(self.wanted, results):
            x[...] = getattr(found, f"d{name}")


def _run(call: Call, operands: tuple[Any, ...]) -> Any:
    return called("gqa_attention", call.attributes(), call, call.results, operands)


def _forward(call: Call, operands: Any) -> Any:
    names = [name for name, _ in call.axes]
    values = tuple(x.value for x in operands)
    out, lse = _run(call.with_lse(), values)
    # Which gradients are wanted is known now, and must not become an array.
    wanted = {name: None for name, x in zip(names, operands) if x.perturbed and name in (*TENSORS, "mask", "sinks")}
    return ((out, lse) if len(call.results) > 1 else (out,)), (values, out, lse, wanted)


def _backward(call: Call, residuals: Any, cotangents: Any) -> Any:
    values, out, lse, wanted = residuals
    operands = {name: jnp.asarray(x) for (name, _), x in zip(call.axes, values)}  # a constant may have become a number
    joined = _joined(call, operands)
    given = {"dout": _array(cotangents[0]), "out": out, "lse": lse}
    if len(cotangents) > 1 and not isinstance(cotangents[1], SymbolicZero):
        given["dlse"] = _array(cotangents[1])
    names = [name for name in joined if name in ("q", "k", "v") or name in wanted]
    function = _Gradient(
        replace(call, axes=tuple((name, x.ndim) for name, x in joined.items())), tuple(given), tuple(names)
    )
    results = [(joined[name].shape, joined[name].dtype) for name in names]
    operands_given = (*given.values(), *joined.values())
    found = dict(zip(names, called("gqa_attention_vjp", function.attributes(), function, results, operands_given)))
    return (tuple(_part(call, name, operands, found) for name in operands),)


def _array(cotangent: Any) -> Any:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if isinstance(cotangent, SymbolicZero) else cotangent


def _joined(call: Call, operands: dict[str, Any]) -> dict[str, Any]:
    """The operands with a past as part of k and v."""
    if "past_key" not in operands:
        return operands
    parts = {name: [operands[x] for x in (past, name) if x in operands] for past, name in _PASTS.items()}
    joined = {"q": operands["q"]} | {name: jnp.concatenate(x, _token_axis(call)) for name, x in parts.items()}
    return joined | {name: x for name, x in operands.items() if name not in TENSORS}


def _part(call: Call, name: str, operands: dict[str, Any], found: dict[str, Any]) -> Any:
    """The gradient of an operand, of which a past, and what comes after it, has a part; None: there is none."""
    whole = _PASTS.get(name, name)
    if whole not in found or "past_key" not in operands or name not in ("k", "v", *_PASTS):
        return found.get(name)
    axis = _token_axis(call)
    past = operands[next(x for x in _PASTS if _PASTS[x] == whole)].shape[axis]
    first, last = (0, past) if name in _PASTS else (past, found[whole].shape[axis])
    return jax.lax.slice_in_dim(found[whole], first, last, axis=axis)


def _token_axis(call: Call) -> int:
    return len(call.out[0]) - (3 if dict(call.settings).get("layout") == "bshd" else 2)


_PASTS = {"past_key": "k", "past_value": "v"}
differentiable = jax.custom_vjp(_run, nondiff_argnums=(0,))  # of a call and its operands
differentiable.defvjp(_forward, _backward, symbolic_zeros=True)
