"""Programs while they are made: values with kinds, each the result of one of the core's operations.

No value is there twice, and what depends on nothing but constants is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FLOAT, WHOLE, BOOL = "float", "whole", "bool"
MOST_INSTRUCTIONS = 4096
MOST_STEPS = 4 * MOST_INSTRUCTIONS  # of a function that does the same over and over, without a new value


class Instruction(NamedTuple):
    """How a value comes about: operands are numbers of earlier values.

    payload: the number of a constant; of a gather (array, per axis whether its index counts from the end); else None.
    """

    op: str
    kind: str
    operands: tuple[int, ...] = ()
    payload: Any = None


class ArrayUse(NamedTuple):
    """An array that a program reads: how the function calls it, its number of axes and kind, and where it is found.

    where: the argument whose function reads it first. source: its number among the arrays that the function captures,
    or the array itself if the function made it.
    """

    name: str
    where: str
    rank: int
    kind: str
    source: Any


class Operand:
    """A value of a graph in the hands of a traced function."""

    __slots__ = ("graph", "number")

    def __init__(self, graph: Graph, number: int) -> None:
        self.graph, self.number = graph, number


class Graph:
    """The values of one program, numbered in the order in which they were made.

    `where` is the argument whose function is traced, for messages.
    """

    def __init__(self) -> None:
        self.where = "score_mod"
        self.instructions: list[Instruction] = []
        self.arrays: list[ArrayUse] = []
        self.shapes_read: set[int] = set()  # arrays whose shape the function asked for: numbers as in `source`
        self._numbers: dict[Any, int] = {}
        self._steps = 0

    def put(self, op: str, kind: str, operands: tuple[int, ...] = (), payload: Any = None) -> int:
        """The number of the value of an operation on other values."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise self.refused(ValueError, f"does more than {MOST_STEPS} operations: {_ENDLESS}")
        if op in _COMMUTATIVE and operands[0] > operands[1]:
            operands = operands[1], operands[0]
        if operands and op in _FOLDED:
            values = [self.instructions[n] for n in operands]
            if all(value.op == "constant" for value in values):
                with np.errstate(all="ignore"):
                    result = _FOLDED[op](*(_WIDEST[value.kind](value.payload) for value in values))
                return self.constant(_PLAIN[kind](result))
        return self._number_of(Instruction(op, kind, operands, payload), (op, kind, operands, payload))

    def constant(self, value: bool | int | float) -> int:
        """The number of a constant; a whole one must fit 64 bits."""
        if isinstance(value, bool):
            kind = BOOL
        elif isinstance(value, int):
            kind = WHOLE
            if not -(2**63) <= value < 2**63:
                raise self.refused(ValueError, f"uses the integer {value}, expected one of 64 bits, or a float")
        else:
            kind = FLOAT
        return self._number_of(Instruction("constant", kind, (), value), (kind, repr(value)))  # -0.0 is not 0.0

    def _number_of(self, instruction: Instruction, key: Any) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.instructions)
            if number >= MOST_INSTRUCTIONS:
                raise self.refused(ValueError, f"has more than {MOST_INSTRUCTIONS} operations: {_ENDLESS}")
            self.instructions.append(instruction)
        return number

    def array(self, use: ArrayUse) -> int:
        """The number of an array among those that the program reads."""
        for i, known in enumerate(self.arrays):
            if known.source is use.source or (isinstance(use.source, int) and known.source == use.source):
                return i
        self.arrays.append(use)
        return len(self.arrays) - 1

    def kind(self, number: int) -> str:
        return self.instructions[number].kind

    def known(self, number: int) -> Any:
        """The number that a value is, or None if it is no constant."""
        instruction = self.instructions[number]
        return instruction.payload if instruction.op == "constant" else None

    def lift(self, x: Any) -> int:
        """The value of what a function computes with: an operand, or a number; TypeError for anything else."""
        if isinstance(x, Operand):
            if x.graph is not self:
                raise self.refused(TypeError, "uses a symbol of another trace; symbols are of no use outside of theirs")
            return x.number
        if hasattr(type(x), "refuse"):  # a captured array
            x.refuse("computes with all of it")
        if getattr(x, "shape", None) == () and hasattr(x, "item"):  # a scalar of NumPy, torch, ...
            x = x.item()
        if isinstance(x, (bool, int, float)):
            return self.constant(x if type(x) in (bool, int, float) else float(x) if isinstance(x, float) else int(x))
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            raise self.refused(
                TypeError,
                f"uses an array of shape {tuple(x.shape)} as a number: index it, with one index for each axis, as in "
                "table[h, kv_idx]",
            )
        raise self.refused(
            TypeError, f"computes with a {type(x).__name__} ({x!r:.60}), expected numbers and indexed arrays"
        )

    def refused(self, error: type[Exception], reason: str) -> Exception:
        """The exception for what the traced function did."""
        return error(f"{self.where} {reason}")


_ENDLESS = (
    "a loop or a recursion cannot end by what it computes, which is not known yet; put what is known in an array, and "
    "index it"
)
_COMMUTATIVE = {"add", "mul", "eq", "ne", "and", "or", "xor"}


def _truncated(x: Any) -> int:
    return 0 if math.isnan(x) else int(min(max(float(x), -(2.0**63)), 2.0**63 - 1024))


# The operations on constants, as NumPy has them, in the widest type of each kind.
_WIDEST: dict[str, Callable[[Any], Any]] = {FLOAT: np.float64, WHOLE: np.int64, BOOL: np.bool_}
_PLAIN: dict[str, Callable[[Any], Any]] = {FLOAT: float, WHOLE: int, BOOL: bool}
_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": np.floor_divide,
    "mod": np.remainder, "pow": np.power, "neg": np.negative, "abs": np.absolute, "min": np.minimum, "max": np.maximum,
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "floor": np.floor,
    "sign": np.sign, "sin": np.sin, "cos": np.cos, "lt": np.less, "le": np.less_equal, "eq": np.equal,
    "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shl": np.left_shift, "shr": np.right_shift, "isfinite": np.isfinite, "where": np.where,
    "to_float": float, "to_whole": _truncated, "to_bool": bool,
}  # fmt: skip
