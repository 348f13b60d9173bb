"""GroupQueryAttention's present_key and present_value: the past and the new tokens, in the past's own memory or not."""

from __future__ import annotations

from typing import Any

from gqa.arguments import Array, dtype_name, sharing_memory
from gqa.onnx.group_query.attributes import INPUTS, GroupQueryAttributes
from gqa.onnx.group_query.shapes import GroupQueryShapes
from gqa.onnx.group_query.timeline import Place
from gqa.rules import check_pair
from gqa.shapes import Shape

NAMES = (*INPUTS, "present_key")


def is_same_memory(a: Array, b: Array | None) -> bool:
    """Whether two arrays are the same elements in the same order."""
    if b is None or a is b:
        return a is b
    same = a.ctypes.data == b.ctypes.data and a.dtype == b.dtype
    return same and a.shape == b.shape and a.strides == b.strides


def check_presents(
    buffers: dict[str, Array],
    inputs: tuple[Any, ...],
    sizes: GroupQueryShapes,
    attributes: GroupQueryAttributes,
    total: int,
) -> None:
    """Raise unless the given buffers can take the past and the new tokens without harm to an input or each other."""
    check_pair("present_key", "present_value", buffers)
    shape = sizes.present(total)
    for name, past, other in (
        ("present_key", INPUTS.index("past_key"), None),
        ("present_value", INPUTS.index("past_value"), buffers["present_key"]),
    ):
        buffer = buffers[name]
        in_place = is_same_memory(buffer, inputs[past])
        if sizes.shared:
            if not in_place:
                raise ValueError(f"{name} is not the past itself, which stays as it is without new keys and values")
            continue
        if not in_place or sizes.capacity < shape[2]:
            _check_type(name, buffer, shape, attributes.cache_type(inputs[0].dtype.name), sizes.sliding)
        if not buffer.flags.writeable:
            raise ValueError(f"{name} is read-only")
        others = [*inputs, other]
        if in_place:
            others[past] = None
        for j in sharing_memory(buffer, tuple(others)):
            raise ValueError(f"{name} overlaps {NAMES[j]} in memory")


def write_present(buffer: Array, past: Array | None, new: Array, found: list[Place]) -> None:
    """Write what changes: of the past itself the new rows only, of other memory everything, 0 after the last token.

    new holds the tokens of the query, (B, S, Hkv, D).
    """
    in_place = is_same_memory(buffer, past)
    for b, (_, _, stored, dropped, written) in enumerate(found):
        kept, skipped = max(stored - dropped, 0), max(dropped - stored, 0)
        end = kept + written - skipped
        if past is not None and not (in_place and dropped == 0):
            buffer[b, :, :kept] = past[b, :, stored - kept : stored]
        buffer[b, :, kept:end] = new[b, skipped:written].swapaxes(0, 1)
        if not in_place:
            buffer[b, :, end:] = 0


def _check_type(name: str, buffer: Array, shape: Shape, dtype: str, sliding: bool) -> None:
    if dtype_name(name, buffer) != dtype:
        raise TypeError(f"{name} has dtype {buffer.dtype}, expected {dtype}")
    rows = buffer.shape[2] if buffer.ndim == 4 else 0
    if buffer.shape != (*shape[:2], rows, shape[3]) or rows < shape[2] or (sliding and rows > shape[2]):
        raise ValueError(f"{name} has shape {buffer.shape}, expected {shape}")
