"""The gradients of attention by its definition, in float64."""

from __future__ import annotations

import numpy as np

import oracle
from oracle import wide

NAMES = ("dq", "dk", "dv", "dmask", "dsinks")


def attention_vjp(dout, q, k, v, *, dlse=None, mask=None, sinks=None, layout="bhsd", **options):
    """Gradients by name, of the shapes of the arguments, and their magnitudes.

    magnitudes: the largest element that each would have if nothing cancelled, to which rounding errors are relative.
    """
    batched = q.ndim == 4
    x = oracle.forward(q, k, v, mask=mask, sinks=sinks, layout=layout, **options)
    # Keys that a row does not attend, and rows that attend none, do not matter whatever they hold.
    rows, tokens = x.allowed.any(-1), x.allowed.any(2)

    def placed(y):
        y = wide(y)
        y = y if batched else y[None]
        return y.swapaxes(1, 2) if layout == "bshd" else y

    dout = np.where(rows[..., None], placed(dout), 0)
    x.q = np.where(rows[..., None], x.q, 0)
    x.keys, x.values = (np.where(tokens[..., None], y, 0) for y in (x.keys, x.values))
    dlse = np.zeros(rows.shape) if dlse is None else np.where(rows | np.isfinite(x.sink), placed(dlse), 0)
    gradients = _gradients(x, dout, dlse, sinks, mask)
    for name in ("q", "keys", "values", "slope"):
        setattr(x, name, np.abs(getattr(x, name)))
    x.scale = abs(x.scale)
    bounds = _gradients(x, np.abs(dout), -np.abs(dlse), sinks, mask, sign=-1)
    for name in ("dq", "dk", "dv"):
        y = gradients[name].swapaxes(1, 2) if layout == "bshd" else gradients[name]
        gradients[name] = y if batched else y[0]
    return gradients, {name: np.abs(y).max(initial=0) for name, y in bounds.items()}


def _gradients(x, dout, dlse, sinks, mask, sign=1):
    """sign: -1 adds up what cancels otherwise."""
    dp = dout @ x.values.swapaxes(2, 3)
    out = x.weights @ x.values
    delta = (dout * out).sum(-1) - dlse
    ds = x.weights * (dp - sign * delta[..., None])
    dx = np.where(x.allowed, ds * np.where(x.allowed, x.slope, 0), 0)
    gradients = {
        "dq": dx @ x.keys * x.scale,
        "dk": _summed_heads(dx.swapaxes(2, 3) @ x.q * x.scale, x.kv_heads),
        "dv": _summed_heads(x.weights.swapaxes(2, 3) @ dout, x.kv_heads),
    }
    if mask is not None and mask.dtype != bool:
        gradients["dmask"] = _unbroadcast(ds, mask.shape)
    if sinks is not None:
        with np.errstate(invalid="ignore"):
            sink_weights = np.where(np.isneginf(x.sink), 0, np.exp(x.sink - x.lse))
        gradients["dsinks"] = -(sink_weights * delta).sum((0, 2))
    return gradients


def _summed_heads(x, kv_heads):
    batch, heads, *rest = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads, *rest).sum(2)


def _unbroadcast(x, shape):
    if len(shape) < x.ndim:
        x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def joined(arguments):
    """Arguments of gqa.attention without a past, which is put in front of k and v."""
    arguments = dict(arguments)
    axis = {"bhsd": -2, "bshd": -3}[arguments.get("layout", "bhsd")]
    for name, past in (("k", "past_key"), ("v", "past_value")):
        if past in arguments:
            arguments[name] = np.concatenate([arguments.pop(past), arguments[name]], axis=axis)
    return arguments
