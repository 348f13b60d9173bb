"""Shapes of attention: what fits together, and what comes out.

Works on tuples and dtype names, not on arrays: every front door uses it to check its arguments, and
:func:`gqa.infer_shapes` offers it to callers who have no data yet.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from gqa.dtypes import compute_dtype, require_float

Shape = tuple[int, ...]

LAYOUTS = {
    "bhsd": ("batch", "heads", "tokens", "head_dim"),
    "bshd": ("batch", "tokens", "heads", "head_dim"),
}
MOST_CHANNELS = 65536


@dataclass(frozen=True)
class AttentionShapes:
    """The sizes of one attention call, whatever its layout."""

    layout: str
    batched: bool
    batch: int
    query_heads: int
    kv_heads: int
    queries: int
    past_keys: int
    new_keys: int
    head_dim: int
    v_head_dim: int

    @property
    def keys(self) -> int:
        return self.past_keys + self.new_keys

    @property
    def out(self) -> Shape:
        return (*self.lse, self.v_head_dim)

    @property
    def lse(self) -> Shape:
        rows = (self.query_heads, self.queries) if self.layout == "bhsd" else (self.queries, self.query_heads)
        return (self.batch, *rows) if self.batched else rows

    @property
    def mask(self) -> Shape:
        rows = (self.query_heads, self.queries, self.keys)
        return (self.batch, *rows) if self.batched else rows


def attention_shapes(shapes: dict[str, Shape], *, layout: str = "bhsd") -> AttentionShapes:
    """Check the shapes of q and of k and v, past_key and past_value, or all four; ValueError if they do not fit."""
    names = layout_axes(layout)
    for one, other in (("k", "v"), ("past_key", "past_value")):
        if (one in shapes) != (other in shapes):
            given, missing = (one, other) if one in shapes else (other, one)
            raise ValueError(f"{given} is given without {missing}")
    if "k" not in shapes and "past_key" not in shapes:
        raise ValueError("k and v are needed, or past_key and past_value to attend a cache alone")

    axes = len(shapes["q"])
    names = names if axes == 4 else names[1:]
    expected = f"({', '.join(names)})"
    if axes not in (3, 4):
        raise ValueError(f"q has shape {shapes['q']}, expected {expected}, or three axes without the batch")
    sizes = {}
    for name, shape in shapes.items():
        if len(shape) != axes:
            raise ValueError(f"{name} has shape {shape}, expected {axes} axes {expected} as q {shapes['q']}")
        sizes[name] = dict(zip(names, shape))
        if sizes[name]["head_dim"] > MOST_CHANNELS:
            raise ValueError(f"{name} has head_dim {shape[-1]}, expected at most {MOST_CHANNELS}")

    q = sizes["q"]
    first_key, first_value = ("k", "v") if "k" in sizes else ("past_key", "past_value")
    kv_heads, v_head_dim = sizes[first_key]["heads"], sizes[first_value]["head_dim"]
    if kv_heads == 0 or q["heads"] % kv_heads != 0:
        raise ValueError(f"{first_key} has {kv_heads} heads, which does not divide the {q['heads']} heads of q")
    for name, size in sizes.items():
        if axes == 4 and size["batch"] != q["batch"]:
            raise ValueError(f"{name} has batch {size['batch']}, expected {q['batch']} as q")
        if name == "q":
            continue
        if size["heads"] != kv_heads:
            raise ValueError(f"{name} has {size['heads']} heads, expected {kv_heads} as {first_key}")
        like, head_dim = ("q", q["head_dim"]) if name in ("k", "past_key") else (first_value, v_head_dim)
        if size["head_dim"] != head_dim:
            raise ValueError(f"{name} has head_dim {size['head_dim']}, expected {head_dim} as {like}")
    for key, value in (("k", "v"), ("past_key", "past_value")):
        if key in sizes and sizes[key]["tokens"] != sizes[value]["tokens"]:
            raise ValueError(f"{value} has {sizes[value]['tokens']} tokens, expected {sizes[key]['tokens']} as {key}")
    return AttentionShapes(
        layout=layout,
        batched=axes == 4,
        batch=q["batch"] if axes == 4 else 1,
        query_heads=q["heads"],
        kv_heads=kv_heads,
        queries=q["tokens"],
        past_keys=sizes["past_key"]["tokens"] if "past_key" in sizes else 0,
        new_keys=sizes["k"]["tokens"] if "k" in sizes else 0,
        head_dim=q["head_dim"],
        v_head_dim=v_head_dim,
    )


def layout_axes(layout: Any) -> tuple[str, ...]:
    """The names of a layout's axes; TypeError or ValueError if it is none."""
    if not isinstance(layout, str):
        raise TypeError(f"layout is {layout!r}, expected a string")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[layout]


def attention_dtypes(dtypes: dict[str, str]) -> tuple[str, str]:
    """The dtypes of out and lse; TypeError for an argument of a type that attention does not take.

    The dtype of a quantised argument is "quantized".
    """
    for name, dtype in dtypes.items():
        if dtype != "quantized" or name == "q":
            require_float(name, dtype)
    return dtypes["q"], compute_dtype(*dtypes.values())


def check_broadcast(name: str, shape: Shape, to: Shape) -> None:
    """Raise ValueError unless `shape` broadcasts to exactly `to`, by NumPy's rules."""
    if len(shape) > len(to) or any(n not in (1, m) for n, m in zip(reversed(shape), reversed(to))):
        raise ValueError(f"{name} has shape {shape}, which does not broadcast to {to}")


def check_shape(name: str, shape: Shape, expected: Shape) -> None:
    """Raise ValueError unless `shape` is `expected`."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(shape)}, expected {tuple(expected)}")


def check_window(window: Any) -> tuple[int | None, int | None] | None:
    """`window` as a tuple of whole numbers or None."""
    if window is None:
        return None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window is {window!r}, expected a tuple (left, right)")
    left, right = (None if side is None else check_int("window", side) for side in window)
    for side in (left, right):
        if side is not None and side < 0:
            raise ValueError(f"window is ({left}, {right}), expected bounds of at least 0, or None for no bound")
    return left, right


def check_int(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; TypeError if it is none, ValueError if it is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an integer") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if least is not None and number < least:
        raise ValueError(f"{name} is {number}, expected at least {least}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool: True, False, or NumPy's; TypeError for anything else."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} is {value!r}, expected True or False")


def check_float(name: str, value: Any, least: float = -math.inf) -> float:
    """`value` as a finite float; TypeError if it is no number, ValueError if it is not finite or below `least`."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
        raise TypeError(f"{name} is {value!r}, expected a float")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float") from None
    if not math.isfinite(number) or number < least:
        bound = f" of at least {least:g}" if least > -math.inf else ""
        raise ValueError(f"{name} is {number}, expected a finite number{bound}")
    return number
