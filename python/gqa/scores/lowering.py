"""What NumPy's operations mean on values of a graph: which kind they compute in, and which of the core's they become.

Every function takes a graph and numbers of its values, and returns the number of a value. As in NumPy, floats beat
whole numbers and whole numbers beat bools; ``/`` and the functions of real numbers give floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gqa.scores.graph import BOOL, FLOAT, WHOLE, Graph

_RANK = {BOOL: 0, WHOLE: 1, FLOAT: 2}
_ACROSS = {FLOAT: "to_float", WHOLE: "to_whole", BOOL: "to_bool"}


def cast(g: Graph, a: int, kind: str) -> int:
    """The value in another kind: floats are cut towards zero, and whatever is not 0 is True."""
    return a if g.kind(a) == kind else g.put(_ACROSS[kind], kind, (a,))


def common(g: Graph, *values: int, least: str = BOOL) -> tuple[str, tuple[int, ...]]:
    """The kind that values have together, at least `least`, and the values in it."""
    kind = max((least, *(g.kind(a) for a in values)), key=_RANK.__getitem__)
    return kind, tuple(cast(g, a, kind) for a in values)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def add(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    if kind == WHOLE and 0 in (g.known(a), g.known(b)):
        return b if g.known(a) == 0 else a
    return g.put("or" if kind == BOOL else "add", kind, (a, b))


def sub(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    if kind == BOOL:
        raise g.refused(TypeError, "subtracts bools, which NumPy has no result for: use ^, or astype(int) before")
    if g.known(b) == 0 and math.copysign(1, g.known(b)) > 0:
        return a
    return g.put("sub", kind, (a, b))


def mul(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    if kind == BOOL:
        return both(g, a, b)
    if 1 in (g.known(a), g.known(b)):
        return b if g.known(a) == 1 else a
    return g.put("mul", kind, (a, b))


def div(g: Graph, a: int, b: int) -> int:
    _, (a, b) = common(g, a, b, least=FLOAT)
    return a if g.known(b) == 1 else g.put("div", FLOAT, (a, b))


def floordiv(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b, least=WHOLE)
    return a if kind == WHOLE and g.known(b) == 1 else g.put("floordiv", kind, (a, b))


def mod(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b, least=WHOLE)
    return g.put("mod", kind, (a, b))


def neg(g: Graph, a: int) -> int:
    if g.kind(a) == BOOL:
        raise g.refused(TypeError, "negates a bool: use ~, or astype(int) before")
    return g.put("neg", g.kind(a), (a,))


def absolute(g: Graph, a: int) -> int:
    return a if g.kind(a) == BOOL else g.put("abs", g.kind(a), (a,))


def sign(g: Graph, a: int) -> int:
    if g.kind(a) == BOOL:
        raise g.refused(TypeError, "takes the sign of a bool: use astype(int) before")
    return g.put("sign", g.kind(a), (a,))


def minimum(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    return a if a == b else both(g, a, b) if kind == BOOL else g.put("min", kind, (a, b))


def maximum(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    return a if a == b else either(g, a, b) if kind == BOOL else g.put("max", kind, (a, b))


# ---- powers --------------------------------------------------------------------------------------------------------


def power(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b, least=WHOLE)
    base, exponent = g.known(a), g.known(b)
    if base is not None and exponent is None and base == 2:
        if kind == FLOAT:
            return g.put("exp2", FLOAT, (b,))
        one, zero = g.constant(1), g.constant(0)
        return where(g, g.put("lt", BOOL, (b, zero)), zero, g.put("shl", WHOLE, (one, b)))
    if kind == WHOLE:
        return _whole_power(g, a, b)
    if exponent in (0, 1, 2, 3):
        return _repeated(g, a, int(exponent))
    if exponent == -1:
        return div(g, g.constant(1.0), a)
    return g.put("pow", FLOAT, (a, b))


def _repeated(g: Graph, a: int, times: int) -> int:
    """a ** times, by squares."""
    result, square = cast(g, g.constant(1), g.kind(a)), a
    while times:
        if times & 1:
            result = mul(g, result, square)
        times >>= 1
        square = mul(g, square, square) if times else square
    return result


def _whole_power(g: Graph, a: int, b: int) -> int:
    exponent = g.known(b)
    if exponent is not None:
        if exponent < 0:
            raise g.refused(ValueError, f"raises an integer to the power {exponent}: make it a float before")
        if exponent < 64:
            return _repeated(g, a, exponent)
    # By the bits of the exponent, of which those past the sixth make no number that fits; negative ones give 0.
    zero, one = g.constant(0), g.constant(1)
    result, square = one, a
    for bit in range(6):
        odd = g.put("ne", BOOL, (zero, g.put("and", WHOLE, (b, g.constant(1 << bit)))))
        result = where(g, odd, mul(g, result, square), result)
        square = mul(g, square, square)
    return where(g, g.put("lt", BOOL, (b, zero)), zero, result)


# ---- functions of real numbers -------------------------------------------------------------------------------------


def real(op: str) -> Callable[[Graph, int], int]:
    """A function of the core's on floats."""
    return lambda g, a: g.put(op, FLOAT, (cast(g, a, FLOAT),))


def logarithm(base: float) -> Callable[[Graph, int], int]:
    """The logarithm to some base."""
    return lambda g, a: mul(g, real("log")(g, a), g.constant(1 / math.log(base)))


def square(g: Graph, a: int) -> int:
    return mul(g, a, a)


def reciprocal(g: Graph, a: int) -> int:
    return div(g, g.constant(1.0), a)


def sigmoid(g: Graph, a: int) -> int:
    return reciprocal(g, add(g, g.constant(1.0), real("exp")(g, neg(g, cast(g, a, FLOAT)))))


def relu(g: Graph, a: int) -> int:
    return maximum(g, a, g.constant(0))


def floor(g: Graph, a: int) -> int:
    """As newer versions of NumPy have it: whole numbers stay what they are."""
    return g.put("floor", FLOAT, (a,)) if g.kind(a) == FLOAT else cast(g, a, WHOLE)


def ceil(g: Graph, a: int) -> int:
    return neg(g, floor(g, neg(g, a))) if g.kind(a) == FLOAT else cast(g, a, WHOLE)


def trunc(g: Graph, a: int) -> int:
    if g.kind(a) != FLOAT:
        return cast(g, a, WHOLE)
    return where(g, g.put("lt", BOOL, (a, g.constant(0.0))), ceil(g, a), floor(g, a))


# ---- comparisons and logic -----------------------------------------------------------------------------------------


def less(g: Graph, a: int, b: int) -> int:
    _, (a, b) = common(g, a, b, least=WHOLE)
    return g.put("lt", BOOL, (a, b))


def less_equal(g: Graph, a: int, b: int) -> int:
    _, (a, b) = common(g, a, b, least=WHOLE)
    return g.put("le", BOOL, (a, b))


def greater(g: Graph, a: int, b: int) -> int:
    return less(g, b, a)


def greater_equal(g: Graph, a: int, b: int) -> int:
    return less_equal(g, b, a)


def equal(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    return invert(g, g.put("xor", BOOL, (a, b))) if kind == BOOL else g.put("eq", BOOL, (a, b))


def not_equal(g: Graph, a: int, b: int) -> int:
    kind, (a, b) = common(g, a, b)
    return g.put("xor" if kind == BOOL else "ne", BOOL, (a, b))


def both(g: Graph, a: int, b: int) -> int:
    """``&``"""
    kind, (a, b) = _bits(g, a, b)
    if kind == BOOL and (a == b or True in (g.known(a), g.known(b))):
        return b if g.known(a) is True else a
    return g.constant(False) if kind == BOOL and False in (g.known(a), g.known(b)) else g.put("and", kind, (a, b))


def either(g: Graph, a: int, b: int) -> int:
    """``|``"""
    kind, (a, b) = _bits(g, a, b)
    if kind == BOOL and (a == b or False in (g.known(a), g.known(b))):
        return b if g.known(a) is False else a
    return g.constant(True) if kind == BOOL and True in (g.known(a), g.known(b)) else g.put("or", kind, (a, b))


def one_of(g: Graph, a: int, b: int) -> int:
    """``^``"""
    kind, (a, b) = _bits(g, a, b)
    return g.put("xor", kind, (a, b))


def invert(g: Graph, a: int) -> int:
    """``~``"""
    kind, _ = _bits(g, a)
    instruction = g.instructions[a]
    return instruction.operands[0] if instruction.op == "not" else g.put("not", kind, (a,))


def _bits(g: Graph, *values: int) -> tuple[str, tuple[int, ...]]:
    kind, values = common(g, *values)
    if kind == FLOAT:
        raise g.refused(TypeError, "uses & | ^ or ~ on a float, expected bools or whole numbers: compare it before")
    return kind, values


def shift(op: str) -> Callable[[Graph, int, int], int]:
    """``<<`` (shl) or ``>>`` (shr)."""

    def shifted(g: Graph, a: int, b: int) -> int:
        kind, (a, b) = common(g, a, b, least=WHOLE)
        if kind == FLOAT:
            raise g.refused(TypeError, "shifts a float, expected whole numbers: use astype(int) before")
        # To NumPy a negative count is a very large one; to the core it is 0.
        negative = g.put("lt", BOOL, (b, g.constant(0)))
        return g.put(op, WHOLE, (a, where(g, negative, g.constant(64), b)))

    return shifted


def logical(rule: Callable[[Graph, int, int], int]) -> Callable[[Graph, int, int], int]:
    """A rule for bools on the truth of any values."""
    return lambda g, a, b: rule(g, cast(g, a, BOOL), cast(g, b, BOOL))


def logical_not(g: Graph, a: int) -> int:
    return invert(g, cast(g, a, BOOL))


def isfinite(g: Graph, a: int) -> int:
    return g.put("isfinite", BOOL, (a,)) if g.kind(a) == FLOAT else g.constant(True)


def isnan(g: Graph, a: int) -> int:
    return g.put("ne", BOOL, (a, a)) if g.kind(a) == FLOAT else g.constant(False)


def isinf(g: Graph, a: int) -> int:
    return g.put("eq", BOOL, (absolute(g, a), g.constant(math.inf))) if g.kind(a) == FLOAT else g.constant(False)


def where(g: Graph, condition: int, a: int, b: int) -> int:
    condition = cast(g, condition, BOOL)
    kind, (a, b) = common(g, a, b)
    if g.known(condition) is not None or a == b:
        return a if g.known(condition) or a == b else b
    if kind == BOOL and (g.known(a), g.known(b)) in ((True, False), (False, True)):
        return condition if g.known(a) else invert(g, condition)
    return g.put("where", kind, (condition, a, b))
