"""Attention by its definition in a library that differentiates: PyTorch or jax.numpy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import gradient_oracle
import oracle
from gradient_cases import problem


def attention(xp, q, k, v, mask, sinks, *, allowed, scale, softcap):
    """(B, Hq, S, Dv) of q (B, Hq, S, D), k and v (B, Hkv, T, ...); a mask of floats or None; allowed (B, Hq, S, T)."""
    group = q.shape[1] // k.shape[1]
    heads = np.arange(q.shape[1]) // group
    scores = xp.einsum("bhid,bhjd->bhij", q, k[:, heads]) * scale
    if softcap > 0:
        scores = softcap * xp.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    # Nothing infinite takes part, so that no derivative is infinity times 0.
    weights = xp.where(allowed, xp.exp(xp.where(allowed, scores, xp.zeros_like(scores))), xp.zeros_like(scores))
    total = weights.sum(-1)
    if sinks is not None:
        total = total + xp.exp(sinks)[None, :, None]
    total = xp.where(total == 0, xp.ones_like(total), total)
    return xp.einsum("bhij,bhjd->bhid", weights / total[..., None], v[:, heads])


def prepared(case):
    """A case in float64 as differentiable.attention takes it: what gqa's gradients are compared with, and how.

    arguments and dout: of the forward call; tensors: q, k, v, mask and sinks by name, None where there is none, -inf of
    a mask as 0; options: the others; magnitudes: of gradient_oracle.
    """
    arguments, dout = problem(case, np.float64)
    arguments.pop("layout")
    forward = oracle.forward(**arguments)
    tensors = {name: arguments.get(name) for name in ("q", "k", "v", "mask", "sinks")}
    mask = tensors["mask"]
    if mask is not None:
        tensors["mask"] = None if mask.dtype == bool else np.where(np.isneginf(mask), 0, mask)
    options = {"allowed": forward.allowed, "scale": forward.scale, "softcap": arguments.get("softcap", 0.0)}
    _, magnitudes = gradient_oracle.attention_vjp(dout, **arguments)
    return SimpleNamespace(arguments=arguments, dout=dout, tensors=tensors, options=options, magnitudes=magnitudes)
