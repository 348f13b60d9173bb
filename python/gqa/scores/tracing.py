"""Tracing: score functions are called once, with symbols, and what they do becomes a program.

The core runs programs. A function that was traced before is not traced again while what it depends on is the same
(captures.py); its arrays are looked up anew for each call.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from gqa.scores import lowering, torch_tensors
from gqa.scores.captures import Captures, Identity
from gqa.scores.derivatives import derivative
from gqa.scores.graph import BOOL, FLOAT, WHOLE, Graph
from gqa.scores.program import Plan, Program
from gqa.scores.rebuilding import Rebuilding
from gqa.scores.symbols import Symbol

ScoreMod = Callable[[Any, Any, Any, Any, Any], Any] | Program
MaskMod = Callable[[Any, Any, Any, Any], Any] | Program
_COORDINATES = ("b", "h", "q_idx", "kv_idx")


def trace(score_mod: ScoreMod | None = None, mask_mod: MaskMod | None = None) -> Program:
    """Score functions as a program, which can be given in their place, and shows what became of them.

    :func:`gqa.attention` and the others trace functions by themselves, once; nothing is faster with a program.

    Parameters
    ----------
    score_mod : callable or Program, optional
        ``score_mod(score, b, h, q_idx, kv_idx)`` gives the score that takes the place of `score`, the product of a
        query and a key after scale and softcap. b is the batch entry (of a packed batch the number of the sequence, of
        :meth:`gqa.PagedKVCache.attend` the index in ids), h the query head, q_idx the position of the query among the
        keys, kv_idx the key: all whole numbers.
    mask_mod : callable or Program, optional
        ``mask_mod(b, h, q_idx, kv_idx)`` is true where the query attends the key.

    Returns
    -------
    Program
        As `score_mod` or as `mask_mod` it stands for both. ``repr`` lists its operations. It keeps the arrays that the
        functions captured; what they hold is read when attention is called.

    Raises
    ------
    TypeError, ValueError
        For what cannot be traced; the message says what, and what to write instead. Besides, whatever the function
        itself raises.

    Notes
    -----
    The functions are called once, with symbols in place of numbers. They may use operators, comparisons, NumPy's where,
    minimum, maximum, clip, exp, exp2, log, tanh, sqrt, floor, sign, sin, cos, logical_and, logical_or, logical_not,
    isfinite and astype, or torch's functions of the same meaning, Python's and NumPy's numbers, and arrays (NumPy's or
    another library's) indexed by whole numbers, one for each axis. Indices past the end are clamped; a negative one
    counts from the end where it is a constant. Types are NumPy's: whole numbers stay whole under + - * // %, and have
    32 bits where attention computes in float32.

    The signatures are those of torch's flex_attention (Dong et al. 2024, arXiv:2412.05496).

    Examples
    --------
    >>> import gqa, numpy as np
    >>> slopes = 2.0 ** -np.arange(1, 9)
    >>> gqa.trace(lambda score, b, h, q_idx, kv_idx: score - slopes[h] * (q_idx - kv_idx))
    gqa.Program(score) reading slopes: float[:]
      v0 = slopes[h]
      v1 = q_idx - kv_idx
      v2 = float(v1)
      v3 = v0 * v2
      v4 = score - v3
      new score -> v4
    """
    entry, captures = _traced(score_mod, mask_mod)
    return Program(entry.plan, entry.plan.arrays_of(captures.arrays))


def bind(
    score_mod: Any, mask_mod: Any, *, slope: bool = False, first: tuple[int, int] = (0, 0)
) -> tuple[Any, tuple[Any, ...]] | None:
    """What the core takes for a call: a program and the arrays that it reads now, or None if it would change nothing.

    slope: whether the program also gives the derivative of the new score by the old one; first: which batch entry and
    query head are number 0 of the core's call.
    """
    if mask_mod is None and type(score_mod) is Program and not slope and first == (0, 0):
        plan, arrays = score_mod.plan, score_mod.arrays
        return (plan.core, arrays) if plan.outputs else None
    entry, captures = _traced(score_mod, mask_mod, slope, first)
    plan = entry.plan
    return (plan.core, plan.arrays_of(captures.arrays)) if plan.outputs else None


class _Entry:
    """A trace, and what must still be so for it to hold besides the key that it is found by."""

    __slots__ = ("attributes", "plan", "shapes")

    def __init__(self, plan: Plan, attributes: list[tuple[Identity, str, Any]], shapes: dict[int, Any]) -> None:
        self.plan, self.attributes, self.shapes = plan, attributes, shapes

    def holds(self, captures: Captures) -> bool:
        for identity, name, key in self.attributes:
            try:
                if captures.attribute(identity.get(), name)[1] != key:
                    return False
            except AttributeError:
                return False
        return not self.shapes or all(tuple(captures.arrays[i].shape) == shape for i, shape in self.shapes.items())


_traces: dict[Any, list[_Entry]] = {}
_MOST_TRACES, _MOST_VARIANTS = 512, 8


def _traced(
    score_mod: Any, mask_mod: Any, slope: bool = False, first: tuple[int, int] = (0, 0)
) -> tuple[_Entry, Captures]:
    """The trace of both functions, and all that they capture."""
    captures = Captures()
    key = _key("score_mod", score_mod, captures), _key("mask_mod", mask_mod, captures), slope, first
    entries = _traces.get(key, ())
    for entry in entries:
        tried = captures.copy() if entry.attributes else captures
        if entry.holds(tried):
            return entry, tried
    entry = _trace(score_mod, mask_mod, slope, first, captures)
    if len(_traces) >= _MOST_TRACES:
        _traces.pop(next(iter(_traces)), None)
    _traces[key] = [entry, *entries][:_MOST_VARIANTS]
    return entry, captures


def _key(name: str, function: Any, captures: Captures) -> Any:
    """The key of what a trace depends on; TypeError for what is no function."""
    if function is None:
        return None
    if isinstance(function, Program):
        return Identity(function.plan), *map(captures.key, function.arrays)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, expected a function, or what gqa.trace returns")
    return captures.key(function)


def _trace(score_mod: Any, mask_mod: Any, slope: bool, first: tuple[int, int], captures: Captures) -> _Entry:
    g = Graph()
    rebuilding = Rebuilding(g, captures)
    score = g.put("score", FLOAT)
    inputs = {"score": score, **{name: g.put(name, WHOLE) for name in _COORDINATES}}
    for name, number in zip("bh", first):
        inputs[name] = lowering.add(g, inputs[name], g.constant(number))
    new_score, masks = score, []
    programs = [x for x in (score_mod, mask_mod) if isinstance(x, Program)]
    if len(programs) == 2 and all("score" in x.plan.outputs for x in programs) and score_mod is not mask_mod:
        raise ValueError("score_mod and mask_mod are programs which both have a score_mod, expected one")
    for program in {id(x): x for x in programs}.values():
        outputs = program.plan.put_into(g, inputs, [captures.numbers[id(x)] for x in program.arrays])
        new_score = outputs.get("score", new_score)
        masks += [outputs[name] for name in outputs if name == "mask"]
    with _tensors_indexed_by_symbols():
        if score_mod is not None and not isinstance(score_mod, Program):
            new_score = _score(g, _call(g, "score_mod", score_mod, [*inputs], inputs, rebuilding))
        if mask_mod is not None and not isinstance(mask_mod, Program):
            masks.append(_mask(g, _call(g, "mask_mod", mask_mod, [*_COORDINATES], inputs, rebuilding)))

    found = {}
    if new_score != score:
        found["score"] = new_score
        if slope:
            found["slope"] = derivative(g, new_score, score)
    mask = g.constant(True)
    for other in masks:
        mask = lowering.both(g, mask, other)
    if g.known(mask) is not True:
        found["mask"] = mask
    shapes = {i: tuple(captures.arrays[i].shape) for i in g.shapes_read}
    return _Entry(Plan(g, found), rebuilding.attributes, shapes)


def _call(g: Graph, where: str, function: Any, names: list[str], inputs: dict[str, int], rebuilding: Rebuilding) -> Any:
    """What a function returns for symbols."""
    g.where = where
    traced = rebuilding.of(function, where)
    symbols = [Symbol(g, inputs[name]) for name in names]
    try:
        return traced(*symbols)
    except RecursionError:
        raise ValueError(
            f"{where} calls itself without end: a recursion cannot end by a symbol, whose number is not known yet"
        ) from None
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        raise TypeError(f"{where} cannot be called as {where}({', '.join(names)}): {error}") from None


def _score(g: Graph, result: Any) -> int:
    """The value that score_mod returned."""
    if result is None:
        raise g.refused(TypeError, "returns None, expected a number: is there a `return`?")
    number = _number(g, result, "a number")
    if g.kind(number) == BOOL:
        raise g.refused(
            TypeError, "returns a bool, expected a number: np.where(condition, score, -np.inf), or a mask_mod"
        )
    return lowering.cast(g, number, FLOAT)


def _mask(g: Graph, result: Any) -> int:
    """The value that mask_mod returned."""
    if result is None:
        raise g.refused(TypeError, "returns None, expected a bool: is there a `return`?")
    number = _number(g, result, "a bool")
    if g.kind(number) != BOOL:
        raise g.refused(
            TypeError, f"returns a {g.kind(number)}, expected a bool: compare it, as in x != 0, or use astype(bool)"
        )
    return number


def _number(g: Graph, result: Any, expected: str) -> int:
    if isinstance(result, (tuple, list, dict, str)):
        raise g.refused(TypeError, f"returns a {type(result).__name__}, expected {expected}")
    return g.lift(result)


def _tensors_indexed_by_symbols() -> contextlib.AbstractContextManager[Any]:
    """Within it, tensors of torch that a function made, and gqa has not replaced, can be indexed by symbols as well."""
    torch = sys.modules.get("torch")
    return torch_tensors.indexed_by_symbols() if hasattr(torch, "overrides") else contextlib.nullcontext()
