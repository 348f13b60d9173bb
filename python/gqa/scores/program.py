"""Programs: what tracing makes of score functions, and what the core runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gqa import _core
from gqa.scores.graph import ArrayUse, Graph, Instruction

_INPUTS = ("score", "b", "h", "q_idx", "kv_idx")


class Plan:
    """The instructions of a program, without what no output needs, and the arrays that they read.

    outputs: numbers of values by what they are: "score" (the new score), "mask", and "slope" (the derivative of the new
    score by the old one). There is none that would change nothing.
    """

    def __init__(self, graph: Graph, outputs: dict[str, int]) -> None:
        needed = set(outputs.values())
        for number in range(len(graph.instructions) - 1, -1, -1):
            if number in needed:
                needed.update(graph.instructions[number].operands)
        new = {number: i for i, number in enumerate(sorted(needed))}
        kept = [graph.instructions[number] for number in new]
        arrays = sorted({x.payload[0] for x in kept if x.op == "gather"})
        self.instructions = [
            x._replace(
                operands=tuple(new[n] for n in x.operands),
                payload=(arrays.index(x.payload[0]), x.payload[1]) if x.op == "gather" else x.payload,
            )
            for x in kept
        ]
        self.outputs = {name: new[number] for name, number in outputs.items()}
        self.arrays: list[ArrayUse] = [graph.arrays[i] for i in arrays]
        self._sources = [x.source for x in self.arrays]

    @functools.cached_property
    def text(self) -> str:
        """All of it, for :func:`plan_of`; equal for equal plans."""
        import json  # for exported graphs alone

        return json.dumps([self.instructions, self.outputs, [x._replace(source=None) for x in self.arrays]])

    @functools.cached_property
    def core(self) -> Any:
        """What the core makes of it."""
        return _core.ScoreProgram(
            [tuple(x) for x in self.instructions],
            self.outputs,
            tuple((x.rank, x.kind, f"the array {x.name!r} of {x.where}") for x in self.arrays),
        )

    def put_into(self, g: Graph, inputs: dict[str, int], sources: Sequence[Any]) -> dict[str, int]:
        """The instructions again, as values of another graph, whose inputs are given: the outputs there.

        sources: of the arrays, in order, what is their source in that graph.
        """
        numbers: list[int] = []
        for x in self.instructions:
            if x.op in inputs:
                numbers.append(inputs[x.op])
            elif x.op == "constant":
                numbers.append(g.constant(x.payload))
            else:
                payload = x.payload
                if x.op == "gather":
                    use = self.arrays[payload[0]]._replace(source=sources[payload[0]])
                    payload = g.array(use), payload[1]
                numbers.append(g.put(x.op, x.kind, tuple(numbers[n] for n in x.operands), payload))
        return {name: numbers[n] for name, n in self.outputs.items()}

    def arrays_of(self, captured: list[Any]) -> tuple[Any, ...]:
        """The arrays that the program reads, from all that its functions captured; those without axes with one."""
        arrays = [captured[source] if type(source) is int else source for source in self._sources]
        return tuple([x if x.ndim else x.reshape(1) for x in arrays])


@functools.lru_cache(maxsize=512)
def plan_of(text: str) -> Plan:
    """The plan that a text stands for; what its arrays are, a :class:`Program` says."""
    graph = Graph()
    import json

    instructions, outputs, arrays = json.loads(text)
    for op, kind, operands, payload in instructions:
        if op == "gather":
            payload = payload[0], tuple(payload[1])
        graph.instructions.append(Instruction(op, kind, tuple(operands), payload))
    graph.arrays = [ArrayUse(*x) for x in arrays]
    return Plan(graph, outputs)


class Program:
    """Score functions as a program, made by :func:`gqa.trace`; takes their place as ``score_mod`` or ``mask_mod``.

    ``repr`` lists its operations. It keeps the arrays that it reads, and reads them when attention is called.
    """

    def __init__(self, plan: Plan, arrays: tuple[Any, ...]) -> None:
        self._plan, self._arrays = plan, arrays
        self._text = plan.text

    @property
    def plan(self) -> Plan:
        """The instructions."""
        return self._plan

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays that the program reads, in the plan's order."""
        return self._arrays

    @property
    def text(self) -> str:
        """The instructions as text, for whoever passes programs on as such."""
        return self._text

    def __repr__(self) -> str:
        return "\n".join(_lines(self._plan))


# ---- in words ------------------------------------------------------------------------------------------------------

_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "pow": "**", "and": "&", "or": "|",
    "xor": "^", "shl": "<<", "shr": ">>", "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
_FUNCTIONS = {"min": "minimum", "max": "maximum", "to_float": "float", "to_whole": "int", "to_bool": "bool"}


def _lines(plan: Plan) -> Iterator[str]:
    """One line for each operation, with inputs and constants written where they are used."""
    ends = {number: name for name, number in plan.outputs.items()}
    reads = ", ".join(f"{x.name}: {x.kind}[{', '.join(':' * x.rank)}]" for x in plan.arrays)
    yield f"gqa.Program({', '.join(plan.outputs)}){f' reading {reads}' if reads else ''}"
    names: dict[int, str] = {}
    for number, x in enumerate(plan.instructions):
        if x.op in _INPUTS or x.op == "constant":
            names[number] = x.op if x.op in _INPUTS else repr(x.payload)
        else:
            names[number] = f"v{len(names) - sum(not name.startswith('v') for name in names.values())}"
            yield f"  {names[number]} = {_expression(plan, x, names.__getitem__)}"
    for number, end in ends.items():
        yield f"  {end} -> {names[number]}" if end != "score" else f"  new score -> {names[number]}"


def _expression(plan: Plan, x: Instruction, name: Callable[[int], str]) -> str:
    operands = [name(n) for n in x.operands]
    if x.op == "gather":
        return f"{plan.arrays[x.payload[0]].name}[{', '.join(operands)}]"
    if x.op in _BINARY:
        return f"{operands[0]} {_BINARY[x.op]} {operands[1]}"
    if x.op in ("neg", "not"):
        return ("-" if x.op == "neg" else "~") + operands[0]
    return f"{_FUNCTIONS.get(x.op, x.op)}({', '.join(operands)})"
