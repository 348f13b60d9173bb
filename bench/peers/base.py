"""What an adapter is: a function from a workload and its data to a call that can be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workloads import Array, Inputs, Workload


class Unsupported(Exception):
    """The peer has no form of this workload; the message says why."""


def same(result: Any) -> Any:
    return result


@dataclass(frozen=True)
class Call:
    """One call of attention. What a caller would prepare once (layout, sessions, caches) is prepared before."""

    run: Callable[[], Any]
    output: Callable[[Any], Array] = same  # from what run() returns to an array (B, Hq, S, D), or stacked gradients


Adapter = Callable[[Workload, Inputs, int], Call]  # workload, (q, k, v), number of threads


def packed(x: Array) -> Array:
    """(B, H, S, D) as (B, S, H * D), the layout of a projection's output."""
    batch, heads, tokens, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * head_dim)


def unpacked(x: Array, heads: int) -> Array:
    """The inverse of `packed`, as a view."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
