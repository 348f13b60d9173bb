"""GroupQueryAttention's present_key and present_value: the past with the new tokens, in the past's own memory or not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gqa.arguments import Array, as_array, shares_memory
from gqa.onnx.group_query_shapes import GroupQueryAttributes, GroupQueryShapes
from gqa.onnx.timeline import Place, resident


class Move(NamedTuple):
    """Rows of one batch entry that make up its present: (first, count) of the past, then of the new tokens."""

    kept: tuple[int, int]
    new: tuple[int, int]


def moves(found: list[Place], sizes: GroupQueryShapes, attributes: GroupQueryAttributes) -> list[Move]:
    """A full cache keeps everything, the padding of a first prompt too; a sliding one the last tokens, in order."""
    if not attributes.sliding_window_cache:
        return [Move((0, place.stored), (0, sizes.queries)) for place in found]
    plan = []
    for end, before, stored in found:
        dropped = stored + end - before - resident(end, sizes.capacity or 0, attributes)
        kept, skipped = max(stored - dropped, 0), max(dropped - stored, 0)
        plan.append(Move((stored - kept, kept), (skipped, end - before - skipped)))
    return plan


def is_same_memory(a: Array, b: Array | None) -> bool:
    """Whether two arrays are the same elements in the same order."""
    if b is None or a is b:
        return a is b
    same = a.ctypes.data == b.ctypes.data and a.dtype == b.dtype
    return same and a.shape == b.shape and a.strides == b.strides


def check_presents(
    present_key: Array | None,
    present_value: Array | None,
    inputs: dict[str, Array],
    sizes: GroupQueryShapes,
    attributes: GroupQueryAttributes,
    total: int,
) -> None:
    """Raise unless the given buffers can take the past and the new tokens without harm to an input or each other."""
    if (present_key is None) != (present_value is None):
        given, missing = ("present_value", "present_key") if present_key is None else ("present_key", "present_value")
        raise ValueError(f"{given} is given without {missing}")
    if present_key is None or present_value is None:
        return
    shape = sizes.present(total, bool(attributes.sliding_window_cache))
    dtype = np.dtype(attributes.cache_type("")) if attributes.quantized else inputs["query"].dtype
    for part, buffer in (("key", present_key), ("value", present_value)):
        name, past = f"present_{part}", inputs.get(f"past_{part}")
        if as_array(name, buffer).dtype != dtype:
            raise TypeError(f"{name} has dtype {buffer.dtype}, expected {dtype}")
        in_place = is_same_memory(buffer, past)
        if sizes.shared and not in_place:
            raise ValueError(f"{name} is not past_{part} itself, which stays as it is without new keys and values")
        if sizes.shared:
            continue
        fits = buffer.ndim == 4 and (*buffer.shape[:2], buffer.shape[3]) == (*shape[:2], shape[3])
        if not fits or buffer.shape[2] < shape[2] or (attributes.sliding_window_cache and buffer.shape[2] > shape[2]):
            raise ValueError(f"{name} has shape {buffer.shape}, expected {shape}")
        if not buffer.flags.writeable:
            raise ValueError(f"{name} is read-only")
        for other, x in (inputs | ({"present_key": present_key} if part == "value" else {})).items():
            if shares_memory(buffer, x) and not (in_place and other == f"past_{part}"):
                raise ValueError(f"{name} overlaps {other} in memory")


def write_present(buffer: Array, past: Array | None, new: Array, plan: list[Move]) -> None:
    """Write what changes: all of a buffer of its own, rows without a token as 0; only the new rows of the past itself."""
    in_place = is_same_memory(buffer, past)
    for b, ((first, kept), (skipped, count)) in enumerate(plan):
        if past is not None and not (in_place and first == 0):
            buffer[b, :, :kept] = past[b, :, first : first + kept]
        buffer[b, :, kept : kept + count] = new[b, :, skipped : skipped + count]
        if not in_place:
            buffer[b, :, kept + count :] = 0
