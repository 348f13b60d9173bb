"""Score functions as operators take them: a text that says what to compute, and the tensors that it reads."""

from __future__ import annotations

from typing import Any

import torch

from gqa.arguments import as_array
from gqa.scores.program import Program, plan_of
from gqa.scores.tracing import trace
from gqa.torch.tensors import as_tensor, as_viewed

Arguments = tuple[str | None, list[torch.Tensor]]


def arguments_of(score_mod: Any, mask_mod: Any) -> Arguments:
    """The arguments `program` and `captured` of an operator; None and no tensor where nothing is asked for."""
    if score_mod is None and mask_mod is None:
        return None, []
    if torch.compiler.is_dynamo_compiling():
        return _traced_before(score_mod, mask_mod)
    program = trace(score_mod, mask_mod)
    return program.text, [_captured(x) for x in program.arrays]


def program_of(text: str, captured: list[Any]) -> Program:
    """What gqa's functions take for an operator's arguments."""
    return Program(plan_of(text), tuple(map(as_viewed, captured)))


def viewed_program(score_mod: Any, mask_mod: Any) -> Program:
    """Score functions as a program that reads the memory of tensors, whether or not these require gradients."""
    program = trace(score_mod, mask_mod)
    return Program(program.plan, tuple(map(as_viewed, program.arrays)))


def _traced_before(score_mod: Any, mask_mod: Any) -> Arguments:
    """The same within torch.compile: it reads the attributes of a program, and looks again whether they changed.

    A function is called by gqa's own tracer, which torch.compile cannot follow, and would not know when to call again.
    """
    program = mask_mod if score_mod is None else score_mod
    if not isinstance(program, Program) or (mask_mod is not None and mask_mod is not program):
        torch._dynamo.graph_break(
            msg="score_mod or mask_mod is a function, or they are two programs; within a graph of torch.compile "
            "expected what gqa.trace(score_mod, mask_mod) returned outside of it"
        )
        program = trace(score_mod, mask_mod)
    if torch.compiler.is_exporting() and not all(isinstance(x, torch.Tensor) for x in program.arrays):
        # The export would hold a description of the array, without its elements.
        torch._dynamo.graph_break(
            msg="score_mod or mask_mod captured an array of NumPy, expected tensors where strict=True exports them"
        )
    return program.text, [torch.as_tensor(x) for x in program.arrays]


def _captured(x: Any) -> torch.Tensor:
    """The memory of a captured array as a tensor; PyTorch takes neither negative strides nor what is read-only."""
    if isinstance(x, torch.Tensor):
        return x
    array = as_array("a captured array", x)
    return as_tensor(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())
