"""Whether anybody but the kernel has to hear of a call: a trace, a derivative, a mode, a profiler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import forward_ad

from gqa.torch.tensors import PLAIN


def runs_now(arguments: Iterable[Any]) -> bool:
    """Whether a call on these arguments needs no operator: it is computed at once, and nothing is recorded of it.

    PyTorch's dispatcher with a kernel in Python costs four times the rest of a small call. It is gone around where it
    would do nothing: for plain tensors, without gradients, and with no mode, transform, trace or profiler at work.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    ):
        return False
    recording = torch.is_grad_enabled()
    for x in arguments:
        if isinstance(x, torch.Tensor) and (type(x) not in PLAIN or x.is_meta or (recording and x.requires_grad)):
            return False
    return True


def is_recorded(arguments: Iterable[Any]) -> bool:
    """Whether gradients of these arguments may be asked for later."""
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in arguments)


def is_traced(*arguments: Any) -> bool:
    """Whether these arguments, or all that runs now, stand for values that nobody knows yet."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    return any(isinstance(x, torch.Tensor) and (type(x) not in PLAIN or x.is_meta) for x in arguments)
