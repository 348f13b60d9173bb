"""The functions that a score function may call, by their names in NumPy and torch, and what they become.

`call` is what operators, ufuncs, array functions and methods of symbols all come down to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gqa.scores import lowering
from gqa.scores.graph import BOOL, FLOAT, WHOLE, Graph, Operand


def call(g: Graph, name: str, args: Sequence[Any], options: dict[str, Any]) -> int:
    """The value of a function's result; TypeError if there is no such function, or not with these arguments."""
    name = name.removeprefix("__").removesuffix("__") if name.startswith("__") else name
    if name in _SIMPLE:
        count, rule = _SIMPLE[name]
        extra = {key for key, value in options.items() if value is not None and value is not False}
        if extra or len(args) != count:
            what = f"the argument {min(extra)}" if extra else f"{len(args)} arguments instead of {count}"
            raise g.refused(TypeError, f"calls {name} with {what}{_ASSIGNING if 'out' in extra else ''}")
        return rule(g, *map(g.lift, args))
    if name in _SPECIAL:
        try:
            return _SPECIAL[name](g, *args, **options)
        except TypeError as error:
            if str(error).startswith(g.where):
                raise
            raise g.refused(TypeError, f"calls {name} in a way that is not known here: {error}") from None
    if name.endswith("_") and name[:-1] in NAMES:
        raise g.refused(TypeError, f"calls {name}, which changes a symbol in place: use {name[:-1]}")
    raise g.refused(TypeError, f"calls {name}, which cannot be traced; the functions that can: {', '.join(_LISTED)}")


_ASSIGNING = ": symbols cannot be written to, use the result"
_Rule = Callable[..., int]

_SIMPLE: dict[str, tuple[int, _Rule]] = {}
for _count, _names, _rule in (
    (2, "add radd iadd", lowering.add),
    (2, "subtract sub isub", lowering.sub),
    (2, "multiply mul rmul imul", lowering.mul),
    (2, "divide true_divide truediv itruediv", lowering.div),
    (2, "floor_divide floordiv ifloordiv", lowering.floordiv),
    (2, "remainder mod imod", lowering.mod),
    (2, "power pow ipow", lowering.power),
    (2, "float_power", lambda g, a, b: lowering.power(g, lowering.cast(g, a, FLOAT), b)),
    (2, "minimum", lowering.minimum),
    (2, "maximum", lowering.maximum),
    (2, "less lt", lowering.less),
    (2, "less_equal le", lowering.less_equal),
    (2, "greater gt", lowering.greater),
    (2, "greater_equal ge", lowering.greater_equal),
    (2, "equal eq", lowering.equal),
    (2, "not_equal ne", lowering.not_equal),
    (2, "bitwise_and and rand iand", lowering.both),
    (2, "bitwise_or or ror ior", lowering.either),
    (2, "bitwise_xor xor rxor ixor", lowering.one_of),
    (2, "left_shift bitwise_left_shift lshift ilshift", lowering.shift("shl")),
    (2, "right_shift bitwise_right_shift rshift irshift", lowering.shift("shr")),
    (2, "logical_and", lowering.logical(lowering.both)),
    (2, "logical_or", lowering.logical(lowering.either)),
    (2, "logical_xor", lowering.logical(lowering.one_of)),
    (1, "logical_not", lowering.logical_not),
    (1, "invert bitwise_not", lowering.invert),
    (1, "negative neg", lowering.neg),
    (1, "positive pos", lambda g, a: a),
    (1, "absolute abs fabs", lowering.absolute),
    (1, "sign sgn", lowering.sign),
    (1, "exp", lowering.real("exp")),
    (1, "exp2", lowering.real("exp2")),
    (1, "log", lowering.real("log")),
    (1, "log2", lowering.logarithm(2.0)),
    (1, "log10", lowering.logarithm(10.0)),
    (1, "tanh", lowering.real("tanh")),
    (1, "sqrt", lowering.real("sqrt")),
    (1, "rsqrt", lambda g, a: lowering.reciprocal(g, lowering.real("sqrt")(g, a))),
    (1, "sin", lowering.real("sin")),
    (1, "cos", lowering.real("cos")),
    (1, "sigmoid", lowering.sigmoid),
    (1, "relu", lowering.relu),
    (1, "square", lowering.square),
    (1, "reciprocal", lowering.reciprocal),
    (1, "floor", lowering.floor),
    (1, "ceil", lowering.ceil),
    (1, "trunc fix", lowering.trunc),
    (1, "isfinite", lowering.isfinite),
    (1, "isnan", lowering.isnan),
    (1, "isinf", lowering.isinf),
    (1, "float double", lambda g, a: lowering.cast(g, a, FLOAT)),
    (1, "int long", lambda g, a: lowering.cast(g, a, WHOLE)),
    (1, "bool", lambda g, a: lowering.cast(g, a, BOOL)),
):
    _SIMPLE.update(dict.fromkeys(_names.split(), (_count, _rule)))


# ---- functions with arguments that are no values -------------------------------------------------------------------

_KINDS = {
    "float": FLOAT, "float32": FLOAT, "float64": FLOAT, "double": FLOAT, "int": WHOLE, "int32": WHOLE, "int64": WHOLE,
    "long": WHOLE, "bool": BOOL, "bool_": BOOL,
}  # fmt: skip


def kind_of(g: Graph, dtype: Any) -> str:
    """The kind that a dtype stands for, of whichever library; TypeError for one that values cannot be rounded to."""
    name = getattr(dtype, "__name__", None) or str(dtype).removeprefix("torch.")
    if name not in _KINDS:
        with contextlib.suppress(TypeError):  # another library's, or none
            name = np.dtype(dtype).name
    if name not in _KINDS:
        raise g.refused(TypeError, f"uses the dtype {name}, expected float32, float64, int32, int64 or bool")
    return _KINDS[name]


def _cast(g: Graph, x: Any, dtype: Any = None, *others: Any, **options: Any) -> int:
    """astype, to and type: a dtype, or a tensor that has one; devices and ways to copy change nothing."""
    known = {"copy", "device", "non_blocking", "memory_format", "casting", "order", "subok"}
    if unknown := set(options) - known:
        raise TypeError(f"it has no argument {min(unknown)}")
    for given in (dtype, *others):
        if isinstance(given, Operand):
            return lowering.cast(g, g.lift(x), g.kind(given.number))
        if given is not None and not isinstance(given, bool) and not _is_device(given):
            return lowering.cast(g, g.lift(x), kind_of(g, given))
    return g.lift(x)


def _is_device(x: Any) -> bool:
    return type(x).__name__ == "device" or x in ("cpu",)


def _divide(g: Graph, a: Any, b: Any, *, rounding_mode: str | None = None) -> int:
    a, b = g.lift(a), g.lift(b)
    if rounding_mode == "floor":
        return lowering.floordiv(g, a, b)
    if rounding_mode == "trunc":
        result = lowering.trunc(g, lowering.div(g, a, b))
        return result if FLOAT in (g.kind(a), g.kind(b)) else lowering.cast(g, result, WHOLE)
    return lowering.div(g, a, b)


def _clip(g: Graph, x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> int:
    low, high = a_min if min is None else min, a_max if max is None else max
    number = g.lift(x)
    number = number if low is None else lowering.maximum(g, number, g.lift(low))
    return number if high is None else lowering.minimum(g, number, g.lift(high))


def _where(g: Graph, condition: Any, *cases: Any, **named: Any) -> int:
    cases = *cases, *(named[name] for name in ("x", "y", "input", "self", "other") if name in named)
    if len(cases) != 2:
        raise TypeError(f"where takes a condition and two values, not {len(cases)}")
    x, y = cases
    return lowering.where(g, *map(g.lift, (condition, x, y)))


def _masked_fill(g: Graph, x: Any, mask: Any, value: Any) -> int:
    return lowering.where(g, *map(g.lift, (mask, value, x)))


def _select(g: Graph, condlist: Sequence[Any], choicelist: Sequence[Any], default: Any = 0) -> int:
    result = g.lift(default)
    for condition, choice in reversed(list(zip(condlist, choicelist))):
        result = lowering.where(g, g.lift(condition), g.lift(choice), result)
    return result


def _full_like(g: Graph, x: Any, fill_value: Any, dtype: Any = None, **options: Any) -> int:
    kind = g.kind(g.lift(x)) if dtype is None else kind_of(g, dtype)
    return lowering.cast(g, g.lift(fill_value), kind)


def _new(value: Any) -> _Rule:
    """torch's new_zeros and new_ones, of a shape without axes."""

    def made(g: Graph, x: Any, *size: Any, dtype: Any = None, **options: Any) -> int:
        if size not in ((), ((),)) or options.get("size", ()) not in ((), []):
            raise g.refused(TypeError, "makes an array, expected a number: the size is ()")
        return _full_like(g, x, value, dtype)

    return made


_SPECIAL: dict[str, _Rule] = {
    **dict.fromkeys(("astype", "to", "type"), _cast),
    "type_as": lambda g, x, other: lowering.cast(g, g.lift(x), g.kind(g.lift(other))),
    "div": _divide,
    **dict.fromkeys(("clip", "clamp"), _clip),
    "clamp_min": lambda g, x, min: _clip(g, x, min),
    "clamp_max": lambda g, x, max: _clip(g, x, None, max),
    "where": _where,
    "masked_fill": _masked_fill,
    "select": _select,
    **dict.fromkeys(("full_like", "new_full"), _full_like),
    "zeros_like": lambda g, x, dtype=None, **options: _full_like(g, x, 0, dtype),
    "ones_like": lambda g, x, dtype=None, **options: _full_like(g, x, 1, dtype),
    "new_zeros": _new(0),
    "new_ones": _new(1),
    **{
        name: lambda g, a, b, rule=rule: rule(g, g.lift(b), g.lift(a))
        for name, rule in {
            "rsub": lowering.sub, "rtruediv": lowering.div, "rdiv": lowering.div, "rfloordiv": lowering.floordiv,
            "rmod": lowering.mod, "rpow": lowering.power, "rlshift": lowering.shift("shl"),
            "rrshift": lowering.shift("shr"),
        }.items()
    },
}  # fmt: skip
NAMES = frozenset((*_SIMPLE, *_SPECIAL))
_LISTED = (
    "where", "minimum", "maximum", "clip", "abs", "exp", "exp2", "log", "tanh", "sqrt", "floor", "sign", "sin", "cos",
    "logical_and", "logical_or", "logical_not", "isfinite", "astype",
)  # fmt: skip
