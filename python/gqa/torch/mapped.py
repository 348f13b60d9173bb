"""Operators under torch.vmap: a call for each of what it maps over."""

from __future__ import annotations

from typing import Any

import torch

from gqa.torch.library import ATTENTION, ATTENTION_BACKWARD, LIBRARY, VARLEN, VARLEN_BACKWARD


def _call_each(operator: Any, info: Any, axes: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """The results of all calls, with an axis for them in front; axes: which axis of each argument is mapped over."""
    calls = [operator(*map(lambda x, axis: _part(x, axis, i), arguments, axes)) for i in range(info.batch_size)]
    results = tuple(torch.stack(parts) for parts in zip(*calls))
    return results, (0,) * len(results)


def _part(x: Any, axis: Any, i: int) -> Any:
    if isinstance(x, (list, tuple)):
        return [_part(*item, i) for item in zip(x, axis)]
    return x if axis is None else x.select(axis, i)


for _operator in (ATTENTION, ATTENTION_BACKWARD, VARLEN, VARLEN_BACKWARD):
    torch.library.register_vmap(
        _operator, lambda *arguments, operator=_operator: _call_each(operator, *arguments), lib=LIBRARY
    )
