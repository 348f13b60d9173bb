"""Calls of the backward pass from the table of cases, and how close its gradients must be."""

from __future__ import annotations

import functools
import zlib

import numpy as np

import gqa
import gradient_oracle
from compare import ulps

# Of the largest element, and of the largest there would be if nothing cancelled: one key alone has gradients of 0.
RELATIVE = {"float32": 3e-6, "float64": 2e-14}
OF_MAGNITUDE = {"float32": 5e-7, "float64": 2e-15}
# out, which delta is made of, has been rounded, by up to half a unit in the last place of a number just above a power
# of 2.
ROUNDED_OUT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def problem(case, dtype, layout="bhsd"):
    """The arguments of a forward call without a past, and dout."""
    arguments = gradient_oracle.joined(case.arguments(dtype, layout))
    shape = (*arguments["q"].shape[:-1], arguments["v"].shape[-1])
    rng = np.random.default_rng(zlib.crc32(str(case).encode()) + 1)
    if layout == "bshd":
        batch, queries, heads, channels = shape
        return arguments, rng.standard_normal((batch, heads, queries, channels)).astype(dtype).swapaxes(1, 2)
    return arguments, rng.standard_normal(shape).astype(dtype)


def expected(case, dtype, layout="bhsd"):
    """What gradient_oracle gives for the problem."""
    truth, magnitudes = _expected(case, np.dtype(dtype))
    if layout == "bshd":
        truth = truth | {name: truth[name].swapaxes(1, 2) for name in ("dq", "dk", "dv")}
    return truth, magnitudes


@functools.lru_cache(maxsize=4096)
def _expected(case, dtype):
    arguments, dout = problem(case, dtype)
    return gradient_oracle.attention_vjp(dout, **arguments)


def gradients(arguments, dout, dlse=None, **options):
    """Forward and backward."""
    out, lse = gqa.attention(**arguments, return_lse=True)
    tensors = {name: arguments[name] for name in ("q", "k", "v")}
    others = {name: x for name, x in arguments.items() if name not in tensors}
    return gqa.attention_vjp(dout, *tensors.values(), out, lse, dlse=dlse, **others, **options)


def assert_gradients_close(actual, truths, magnitudes, out_dtype="float64"):
    """actual: AttentionGradients; truths and magnitudes: of gradient_oracle. out_dtype: of the forward call."""
    for name, x in actual._asdict().items():
        if x is None:
            continue
        truth = truths[name]
        assert x.shape == truth.shape, name
        wide = "float64" if x.dtype == np.float64 else "float32"
        allowed = RELATIVE[wide] * np.abs(truth).max(initial=0) + OF_MAGNITUDE[wide] * magnitudes[name]
        allowed += np.finfo(wide).tiny  # smaller numbers may be 0
        if name != "dv":
            allowed += ROUNDED_OUT[np.dtype(out_dtype).name] * magnitudes[name]
        error = np.abs(x.astype(np.float64) - truth)
        near = error <= allowed
        if x.dtype.itemsize == 2:
            near |= ulps(x, truth) <= 1
        assert near.all(), f"{name}: {np.sum(~near)} of {near.size} elements are off, by up to {error.max()}"
