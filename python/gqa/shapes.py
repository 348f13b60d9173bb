"""Layouts, and checks of shapes, numbers and flags that Python itself reads."""

from __future__ import annotations

import math
import operator
from typing import Any

from gqa import _core

Shape = tuple[int, ...]

LAYOUTS = {
    "bhsd": ("batch", "heads", "tokens", "head_dim"),
    "bshd": ("batch", "tokens", "heads", "head_dim"),
}
MOST_CHANNELS: int = _core.MOST_CHANNELS


def layout_axes(layout: Any) -> tuple[str, ...]:
    """The names of a layout's axes; TypeError or ValueError if it is none."""
    if not isinstance(layout, str):
        raise TypeError(f"layout is {layout!r}, expected a string")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[layout]


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
