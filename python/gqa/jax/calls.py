"""Calls of attention whose arrays are not there yet: what is known of them, and how XLA makes them through Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gqa import scaled_dot_product, shape_inference
from gqa.arguments import Array
from gqa.scores.program import Program, plan_of

TENSORS = ("q", "k", "v", "past_key", "past_value")
POSITIONS = ("query_offset", "kv_lengths")
ARRAYS = (*TENSORS, "mask", "sinks", *POSITIONS)
_NUMBERS = ("layout", "causal", "window", "scale", "softcap", "out_dtype", "return_lse", "num_threads")
_CAPTURED = "captured "  # before the number of an array that score functions read
_UNBOUNDED, _MAX_THREADS = 2**62, 1024


@dataclass(frozen=True)
class Call:
    """One call of attention, its arrays left open; equal calls are compiled once."""

    axes: tuple[tuple[str, int], ...]  # of each array by name, without those that vmap puts in front
    out: tuple[tuple[int, ...], str]  # shape and dtype
    lse: tuple[tuple[int, ...], str]
    settings: tuple[tuple[str, Any], ...]
    program: str | None = None  # score functions as text; the arrays that they read are the last ones

    @property
    def results(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        return (self.out, self.lse) if dict(self.settings).get("return_lse") else (self.out,)

    def with_lse(self) -> Call:
        """The same call, which returns the log-sum-exp as well."""
        return replace(self, settings=tuple(sorted({**dict(self.settings), "return_lse": True}.items())))

    def attributes(self) -> dict[str, Any] | None:
        """The call as the attributes of the core's own function for XLA (csrc/xla/); None if it cannot be said so."""
        if self.program is not None or not all(name in _NUMBERS or x is None for name, x in self.settings):
            return None
        own_axes, options = dict(self.axes), dict(self.settings)
        window, scale, threads = (options.get(name) for name in ("window", "scale", "num_threads"))
        bounds = [_UNBOUNDED if n is None else min(int(n), _UNBOUNDED) for n in window or (None, None)]
        return {
            "own_axes": np.array([own_axes.get(name, -1) for name in ARRAYS], np.int64),
            "tokens_first": options.get("layout") == "bshd",
            "causal": bool(options.get("causal", False)),
            "window": np.array(bounds, np.int64),
            "scale": np.float64(math.nan if scale is None else scale),
            "softcap": np.float64(options.get("softcap", 0.0)),
            "num_threads": np.int64(0 if threads is None else min(int(threads), _MAX_THREADS)),
        }

    def named(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """Arrays by the names of gqa.attention's arguments."""
        named = dict(zip((name for name, _ in self.axes), arrays))
        captured = [named.pop(name) for name, _ in self.axes if name.startswith(_CAPTURED)]
        return named if self.program is None else named | {"score_mod": Program(plan_of(self.program), tuple(captured))}

    def __call__(self, context: Any, results: Sequence[Any], *operands: Any) -> None:
        """Called by XLA with its own memory."""
        self.attend([np.asarray(x) for x in operands], [np.asarray(x) for x in results])

    def attend(self, operands: list[Array], results: list[Array]) -> None:
        """Write the results; axes in front of them are of size 1 in an operand that does not have them."""
        shape = self.out[0]
        leading = results[0].shape[: results[0].ndim - len(shape)]
        batch = shape[0] if len(shape) == 4 else 1
        if self.program is None:
            arrays = [_folded(name, x, axes, leading, batch) for (name, axes), x in zip(self.axes, operands)]
        else:  # whose b is the entry of one call's batch
            arrays = [None] if leading else list(operands)
        if any(x is None for x in arrays):
            for one, written in entries(leading[0], operands, results):
                self.attend(one, written)
            return
        if self.program is None:
            rows = math.prod(leading) * batch
            results = [x.reshape(rows, *x.shape[x.ndim - axes :]) for x, axes in zip(results, (3, 2))]
        out, *lse = results
        attended = scaled_dot_product.attention(**self.named(arrays), out=out, **dict(self.settings))
        for x in lse:
            x[...] = attended[1]


def entries(
    count: int, operands: Sequence[Array], results: Sequence[Array]
) -> Iterator[tuple[list[Array], list[Array]]]:
    """What each of the calls along the first axis reads and writes."""
    for i in range(count):
        yield [x[i if len(x) > 1 else 0] for x in operands], [x[i] for x in results]


def _folded(name: str, x: Array, axes: int, leading: tuple[int, ...], batch: int) -> Array | None:
    """An operand with its leading axes as part of the batch, or None if that took a copy of it."""
    own, rest = x.shape[: len(leading)], x.shape[len(leading) :]
    same = math.prod(own) == 1
    if name in POSITIONS:
        positions: Array = np.broadcast_to(x if axes else x[..., None], (*leading, batch)).reshape(-1)
        return positions
    if name == "sinks":
        return x.reshape(rest) if same else None
    rest = (1,) * (4 - axes) + rest
    if own == leading and rest[0] == batch:
        return x.reshape(-1 if x.size else math.prod(leading) * batch, *rest[1:])
    if not same or rest[0] != 1:
        return None
    x = x.reshape(rest)
    return np.broadcast_to(x, (math.prod(leading) * batch, *rest[1:])) if name != "mask" else x


def call_of(operands: dict[str, Any], options: dict[str, Any], program: Program | None) -> Call:
    """The call with these operands; TypeError or ValueError if attention would raise one."""
    shapes, dtypes = ({name: getattr(x, what) for name, x in operands.items()} for what in ("shape", "dtype"))
    inferred = shape_inference.infer_shapes(shapes, dtypes, **options)
    settings = dict(options)
    if settings.get("window") is not None:
        settings["window"] = tuple(settings["window"])
    if settings.get("scale") is not None:
        settings["scale"] = float(settings["scale"])
    captured = () if program is None else program.arrays
    return Call(
        (
            *((name, x.ndim) for name, x in operands.items()),
            *((f"{_CAPTURED}{i}", x.ndim) for i, x in enumerate(captured)),
        ),
        inferred["out"],
        inferred["lse"],
        tuple(sorted(settings.items())),
        None if program is None else program.text,
    )
