"""The derivative of a score function with respect to the score, as one more value of its graph."""

from __future__ import annotations

import math
from collections.abc import Callable

from gqa.scores import lowering
from gqa.scores.graph import BOOL, FLOAT, Graph

_Partials = Callable[[Graph, int, tuple[int, ...]], tuple["int | None", ...]]


def derivative(g: Graph, value: int, score: int) -> int:
    """The derivative of one value of a graph by another, both floats.

    Forward through the values between them. It is 0 by what takes whole steps (floor, comparisons, integers, indices);
    of minimum and maximum that of the first where both are equal, and of abs 0 at 0.
    """
    slopes: dict[int, int] = {score: g.constant(1.0)}
    for number in range(score + 1, value + 1):
        instruction = g.instructions[number]
        inputs = [n for n in instruction.operands if n in slopes]
        if instruction.kind != FLOAT or not inputs:
            continue
        if instruction.op == "where":
            condition, a, b = instruction.operands
            zero = g.constant(0.0)
            slopes[number] = lowering.where(g, condition, slopes.get(a, zero), slopes.get(b, zero))
        elif instruction.op in _PARTIALS:
            partials = _PARTIALS[instruction.op](g, number, instruction.operands)
            terms = [
                lowering.mul(g, partial, slopes[n])
                for n, partial in zip(instruction.operands, partials)
                if n in slopes and partial is not None
            ]
            for term in terms:
                slopes[number] = lowering.add(g, slopes[number], term) if number in slopes else term
    return slopes.get(value, g.constant(0.0))


def _first(compare: str) -> _Partials:
    """Of minimum and maximum: 1 for the operand that it is, by this comparison of the first with the second."""

    def partials(g: Graph, y: int, operands: tuple[int, ...]) -> tuple[int, int]:
        a, b = operands if compare == "min" else operands[::-1]
        first = g.put("le", BOOL, (a, b))
        one, zero = g.constant(1.0), g.constant(0.0)
        return lowering.where(g, first, one, zero), lowering.where(g, first, zero, one)

    return partials


def _power(g: Graph, y: int, operands: tuple[int, ...]) -> tuple[int, int]:
    base, exponent = operands
    lower = g.put("pow", FLOAT, (base, lowering.sub(g, exponent, g.constant(1.0))))
    return lowering.mul(g, exponent, lower), lowering.mul(g, lowering.real("log")(g, base), y)


def _product(g: Graph, y: int, operands: tuple[int, ...]) -> tuple[int, int]:
    return operands[1], operands[0]


def _quotient(g: Graph, y: int, operands: tuple[int, ...]) -> tuple[int, int]:
    divisor = operands[1]
    return lowering.reciprocal(g, divisor), lowering.neg(g, lowering.div(g, y, divisor))


def _remainder(g: Graph, y: int, operands: tuple[int, ...]) -> tuple[int, int]:
    return g.constant(1.0), lowering.neg(g, lowering.floordiv(g, *operands))


_PARTIALS: dict[str, _Partials] = {
    "add": lambda g, y, x: (g.constant(1.0), g.constant(1.0)),
    "sub": lambda g, y, x: (g.constant(1.0), g.constant(-1.0)),
    "mul": _product,
    "div": _quotient,
    "mod": _remainder,
    "pow": _power,
    "min": _first("min"),
    "max": _first("max"),
    "neg": lambda g, y, x: (g.constant(-1.0),),
    "abs": lambda g, y, x: (lowering.sign(g, x[0]),),
    "exp": lambda g, y, x: (y,),
    "exp2": lambda g, y, x: (lowering.mul(g, y, g.constant(math.log(2))),),
    "log": lambda g, y, x: (lowering.reciprocal(g, x[0]),),
    "tanh": lambda g, y, x: (lowering.sub(g, g.constant(1.0), lowering.square(g, y)),),
    "sqrt": lambda g, y, x: (lowering.div(g, g.constant(0.5), y),),
    "sin": lambda g, y, x: (lowering.real("cos")(g, x[0]),),
    "cos": lambda g, y, x: (lowering.neg(g, lowering.real("sin")(g, x[0])),),
}
