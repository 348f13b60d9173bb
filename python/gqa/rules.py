"""Rules that every front door of attention has in common, on names and numbers."""

from __future__ import annotations

import math
from collections.abc import Container


def check_pair(one: str, other: str, given: Container[str]) -> None:
    """ValueError if only one of two arguments is given that belong together."""
    if (one in given) != (other in given):
        there, missing = (one, other) if one in given else (other, one)
        raise ValueError(f"{there} is given without {missing}")


def check_group(name: str, kv_heads: int, query_name: str, query_heads: int) -> None:
    """ValueError unless every key/value head of one tensor serves as many of another's query heads."""
    if not _forms_groups(kv_heads, query_heads):
        raise ValueError(f"{name} has {kv_heads} heads, which does not divide the {query_heads} heads of {query_name}")


def check_group_sizes(name: str, kv_heads: int, query_name: str, query_heads: int) -> None:
    """check_group for arguments that are numbers of heads themselves."""
    if not _forms_groups(kv_heads, query_heads):
        raise ValueError(f"{name} is {kv_heads}, which does not divide {query_name} {query_heads}")


def default_scale(head_dim: int) -> float:
    """What scores are multiplied by unless the caller says otherwise: 1 / sqrt(head_dim)."""
    return 1 / math.sqrt(max(head_dim, 1))


def _forms_groups(kv_heads: int, query_heads: int) -> bool:
    return kv_heads > 0 and query_heads % kv_heads == 0
