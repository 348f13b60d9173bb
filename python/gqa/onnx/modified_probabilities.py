"""FlexAttention whose prob_mod computes each probability by itself: passes over scores, with no array of them.

A probability is p = exp(score - lse), and what is asked for is the sum of f(p) * v over the keys. Attention with scores
log f(p) gives that sum divided by the sum of f(p), of which its own lse is the logarithm. Where f may be negative, its
positive and its negative part are a pass each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array
from gqa.scaled_dot_product import attention
from gqa.scores import lowering
from gqa.scores.graph import BOOL, FLOAT, WHOLE, ArrayUse, Graph
from gqa.scores.program import Plan, Program

# Beyond it, the rounding of a float32 lse is too large a part of a probability.
_LARGE = 16.0


def attend_probabilities(
    q: Array, k: Array, v: Array, score_mod: Program | None, prob_mod: Program, **options: Any
) -> Array:
    """prob_mod(softmax(score_mod(scores))) @ v, (B, Hq, S, Dv) in the type it is computed in.

    options are attention's: scale and num_threads.
    """
    options["query_offset"] = 0

    def sums(program: Program | None, values: Array) -> tuple[Array, Array]:
        in_float: Any = {"out_dtype": "float32"} if q.dtype.itemsize == 2 else {}
        out, lse = attention(q, k, values, score_mod=program, return_lse=True, **in_float, **options)
        return out, lse

    lse = [_offset(sums(score_mod, v[..., :1])[1])]
    if lse[0].dtype == np.float32 and np.any(np.abs(lse[0]) > _LARGE, where=np.isfinite(lse[0])):
        builder = _Builder(score_mod, lse)
        lse.append(_offset(sums(builder.program(builder.score), v[..., :1])[1]))

    builder = _Builder(score_mod, lse)
    weights = builder.modified(prob_mod)
    result: Any = 0.0
    for sign in (1, -1) if _may_be_negative(builder.graph, weights) else (1,):
        out, total = sums(builder.program(builder.logarithm(weights, sign)), v)
        result = result + sign * np.exp(total)[..., None] * out
    return np.asarray(result)


def _offset(lse: Array) -> Array:
    """What is taken off scores. A row without keys has probabilities of 0, whatever its scores: exp(-inf)."""
    return np.where(np.isneginf(lse), lse.dtype.type(np.inf), lse)


class _Builder:
    """Programs of scores, (B, Hq, S) numbers of `lse` taken off each row of them."""

    def __init__(self, score_mod: Program | None, lse: list[Array]) -> None:
        g = self.graph = Graph()
        self._inputs = {name: g.put(name, WHOLE) for name in ("b", "h", "q_idx", "kv_idx")}
        self.score = g.put("score", FLOAT)
        if score_mod is not None:
            self.score = self._applied(score_mod, self.score, -math.inf)
        g.where = "prob_mod"
        for x in lse:
            number = g.array(ArrayUse("lse", g.where, 3, FLOAT, x))
            row = tuple(self._inputs[name] for name in ("b", "h", "q_idx"))
            taken = g.put("gather", FLOAT, row, (number, (False,) * 3))
            self.score = lowering.sub(g, self.score, taken)

    def modified(self, prob_mod: Program) -> int:
        """What prob_mod makes of the probabilities."""
        return self._applied(prob_mod, self.graph.put("exp", FLOAT, (self.score,)), 0.0)

    def logarithm(self, weights: int, sign: int) -> int:
        """Of the weights that have the sign."""
        g = self.graph
        part = lowering.maximum(g, weights if sign > 0 else lowering.neg(g, weights), g.constant(0.0))
        return lowering.real("log")(g, part)

    def program(self, score: int) -> Program:
        plan = Plan(self.graph, {"score": score})
        return Program(plan, plan.arrays_of([]))

    def _applied(self, program: Program, x: int, hidden: float) -> int:
        """What a program makes of a value; `hidden` where its mask hides it."""
        g = self.graph
        outputs = program.plan.put_into(g, {"score": x, **self._inputs}, program.arrays)
        y = outputs.get("score", x)
        return lowering.where(g, outputs["mask"], y, g.constant(hidden)) if "mask" in outputs else y


def _may_be_negative(g: Graph, number: int) -> bool:
    """Whether a value is negative somewhere, as far as its operation tells: False is certain."""
    x = g.instructions[number]
    if x.op in ("exp", "exp2", "abs", "sqrt", "b", "h", "q_idx", "kv_idx") or x.kind == BOOL:
        return False
    if x.op == "constant":
        return bool(x.payload < 0)
    if x.op == "gather":
        use = g.arrays[x.payload[0]]
        return bool(np.any(as_array(use.name, use.source) < 0))
    if x.op == "mul" and x.operands[0] == x.operands[1]:
        return False
    operands = [_may_be_negative(g, n) for n in x.operands]
    if x.op == "max":
        return all(operands)
    if x.op in ("add", "mul", "div", "min", "where", "to_float", "floor", "tanh", "pow"):
        return any(operands)
    return True
