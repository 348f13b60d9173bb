"""com.microsoft GroupQueryAttention from shapes, dtypes and attributes alone: what fits together, what comes out."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array, dtype_name
from gqa.dtypes import name_of, require_float
from gqa.onnx.group_query.attributes import INPUTS, GroupQueryAttributes
from gqa.onnx.schema import check_integers, check_names, check_type_variable
from gqa.rules import check_pair
from gqa.shapes import MOST_CHANNELS, Shape, check_int, check_shape

PAIRS = (
    ("key", "value"), ("past_key", "past_value"), ("cos_cache", "sin_cache"), ("q_norm_weight", "k_norm_weight"),
)  # fmt: skip
_PLAIN = {np.ndarray, type(None)}


@dataclass(frozen=True)
class GroupQueryShapes:
    """The sizes of a call. shared: keys come from the past alone; sliding: the past holds the last tokens only."""

    batch: int
    queries: int
    query_heads: int
    kv_heads: int
    head_dim: int
    cache_channels: int
    capacity: int  # tokens that the past has room for
    bias_keys: int | None  # the last axis of attention_bias
    shared: bool
    sliding: bool

    @property
    def output(self) -> Shape:
        return self.batch, self.queries, self.query_heads * self.head_dim

    def present(self, total: int) -> Shape:
        """The shape of present_key and present_value."""
        capacity = self.capacity if self.sliding or self.shared else max(self.capacity, total)
        return self.batch, self.kv_heads, capacity, self.cache_channels

    def check_total(self, total: int) -> None:
        """The keys must fit: into the past's buffer, or into the past and the new tokens together."""
        if self.queries <= total <= self.capacity and total > 0 and self.bias_keys in (None, total):
            return
        name = f"total_sequence_length is {total}"
        if not max(self.queries, 1) <= total < 1 << 31:
            raise ValueError(f"{name}, expected at least the {self.queries} tokens of query, 1, and an int32")
        if self.bias_keys not in (None, total):
            raise ValueError(f"{name}, but attention_bias is for {self.bias_keys} keys")
        if self.sliding or total <= self.capacity:
            return
        if self.shared:
            raise ValueError(f"{name}, expected at most the {self.capacity} tokens of past_key")
        if total != self.capacity + self.queries:
            raise ValueError(
                f"{name}, expected at most the {self.capacity} tokens of past_key, or exactly "
                f"{self.capacity + self.queries} with the {self.queries} new ones"
            )


def as_arrays(inputs: tuple[Any, ...]) -> tuple[Array | None, ...]:
    """The inputs as arrays, None where one is not given."""
    if _PLAIN.issuperset(map(type, inputs)):
        return inputs
    return tuple(None if x is None else as_array(name, x) for name, x in zip(INPUTS, inputs))


def check_call(
    inputs: tuple[Array | None, ...], attributes: tuple[Any, ...]
) -> tuple[GroupQueryAttributes, GroupQueryShapes]:
    """Check all that needs no values; what stays the same from one step of a model to the next is checked once."""
    types = tuple([None if x is None else (x.shape, x.dtype) for x in inputs])
    try:
        return _checked(types, *attributes)
    except TypeError:  # perhaps for an attribute without a hash, whose own check tells what it should be
        return _checked.__wrapped__(types, *attributes)


@functools.lru_cache(maxsize=128, typed=True)  # 1, 1.0 and True are equal, but not equally good
def _checked(
    types: tuple[tuple[Shape, np.dtype[Any]] | None, ...], *attributes: Any
) -> tuple[GroupQueryAttributes, GroupQueryShapes]:
    given = {name: x for name, x in zip(INPUTS, types) if x is not None}
    shapes = {name: shape for name, (shape, _) in given.items()}
    check_names(shapes, ("query", "seqlens_k", "total_sequence_length"), INPUTS)
    dtypes = {name: dtype_name(name, np.empty(0, dtype)) for name, (_, dtype) in given.items()}
    checked = GroupQueryAttributes(*attributes)
    return checked, group_query_shapes(shapes, dtypes, checked)


def group_query_shapes(
    shapes: dict[str, Shape], dtypes: dict[str, str], attributes: GroupQueryAttributes
) -> GroupQueryShapes:
    """Check the inputs against each other and against the attributes."""
    check_names(shapes, ("query",), INPUTS)
    for one, other in PAIRS:
        check_pair(one, other, shapes)
    _check_types(dtypes, attributes)
    sizes = _sizes(shapes, attributes)
    if sizes.sliding and (sizes.shared or sizes.capacity < attributes.local_window_size):
        raise ValueError(
            f"sliding_window_cache needs key, value and a past of at least local_window_size "
            f"{attributes.local_window_size} tokens"
        )
    _check_others(shapes, attributes, sizes)
    return sizes


def infer(shapes: dict[str, Shape], dtypes: dict[str, Any], attrs: dict[str, Any]) -> dict[str, tuple[Shape, str]]:
    """The outputs of GroupQueryAttention; output_qk only where the attribute qk_output asks for it."""
    names = {name: name_of(dtype) for name, dtype in dtypes.items()}
    attrs = dict(attrs)
    total = attrs.pop("total_sequence_length", None)
    known = tuple(field.name for field in fields(GroupQueryAttributes))
    check_names(attrs, ("num_heads", "kv_num_heads"), known, "attribute")
    attributes = GroupQueryAttributes(**attrs)
    sizes = group_query_shapes(shapes, names, attributes)
    if total is not None:
        sizes.check_total(check_int("total_sequence_length", total))
    elif sizes.bias_keys is not None or "past_key" not in shapes:
        total = sizes.queries if sizes.bias_keys is None else sizes.bias_keys
        sizes.check_total(total)
    elif attributes.qk_output or not (sizes.sliding or sizes.shared):
        raise ValueError("total_sequence_length is missing in attrs: the shapes of the outputs depend on it")
    present = sizes.present(total or 0), attributes.cache_type(names["query"])
    outputs = {"output": (sizes.output, names["query"]), "present_key": present, "present_value": present}
    if attributes.qk_output and total is not None:
        outputs["output_qk"] = ((sizes.batch, sizes.query_heads, sizes.queries, total), names["query"])
    return outputs


def _check_types(dtypes: dict[str, str], attributes: GroupQueryAttributes) -> None:
    check_type_variable(
        dtypes, "query", "key", "value", "cos_cache", "sin_cache", "attention_bias", "head_sink", "q_norm_weight",
        "k_norm_weight",
    )  # fmt: skip
    cache = attributes.cache_type(dtypes["query"])
    for name, expected in (("past_key", cache), ("past_value", cache), ("k_scale", "float32"), ("v_scale", "float32")):
        if dtypes.get(name, expected) != expected:
            if not attributes.quantized:
                require_float(name, dtypes[name])
            raise TypeError(f"{name} has dtype {dtypes[name]}, expected {expected}")
    for name in ("seqlens_k", "total_sequence_length", "position_ids"):
        check_integers(name, dtypes)


def _sizes(shapes: dict[str, Shape], attributes: GroupQueryAttributes) -> GroupQueryShapes:
    """Which of the forms of query, key and value is given, and the head size that follows from it."""
    heads, kv_heads = int(attributes.num_heads), int(attributes.kv_num_heads)
    for name, axes in (("query", 3), ("key", 3), ("value", 3), ("past_key", 4), ("past_value", 4)):
        if len(shapes.get(name, range(axes))) != axes:
            raise ValueError(f"{name} has shape {shapes[name]}, expected {axes} axes")
    batch, queries, channels = shapes["query"]
    past = shapes.get("past_key")
    shared = False
    if "key" in shapes:
        head_dim = channels // heads
        if channels != heads * head_dim:
            raise ValueError(f"query has {channels} channels, which is not a multiple of num_heads {heads}")
        shared = past is not None and shapes["key"][1] == 0
        for name in ("key", "value"):
            check_shape(name, shapes[name], (batch, 0 if shared else queries, kv_heads * head_dim))
    elif past is not None:
        head_dim = past[3] * 2 if attributes.kv_cache_bit_width == 4 else past[3]
        shared = channels != (heads + 2 * kv_heads) * head_dim
        if shared and channels != heads * head_dim:
            raise ValueError(
                f"query has {channels} channels, expected {heads * head_dim} to attend past_key {past} alone, or "
                f"{(heads + 2 * kv_heads) * head_dim} for packed query, key and value"
            )
    else:
        head_dim = channels // (heads + 2 * kv_heads)
        if channels != (heads + 2 * kv_heads) * head_dim:
            raise ValueError(
                f"query has {channels} channels, which is not a multiple of num_heads + 2 * kv_num_heads = "
                f"{heads + 2 * kv_heads}; key and value may only be left out when it holds them, or with a past"
            )
    if head_dim > MOST_CHANNELS:
        raise ValueError(f"query has heads of {head_dim} channels, expected at most {MOST_CHANNELS}")
    if attributes.kv_cache_bit_width == 4 and head_dim % 2:
        raise ValueError(f"query has heads of {head_dim} channels, expected an even number for a 4-bit cache")
    cache_channels = attributes.cache_channels(head_dim)
    capacity = 0 if past is None else past[2]
    for name in ("past_key", "past_value"):
        if name in shapes:
            check_shape(name, shapes[name], (batch, kv_heads, capacity, cache_channels))
    bias = shapes.get("attention_bias", ())
    return GroupQueryShapes(
        batch, queries, heads, kv_heads, head_dim, cache_channels, capacity, bias[-1] if bias else None, shared,
        bool(attributes.sliding_window_cache),
    )  # fmt: skip


def _check_others(shapes: dict[str, Shape], attributes: GroupQueryAttributes, sizes: GroupQueryShapes) -> None:
    """The inputs besides query, key, value and past."""
    heads, kv_heads, head_dim = sizes.query_heads, sizes.kv_heads, sizes.head_dim
    if "seqlens_k" in shapes and shapes["seqlens_k"] not in ((sizes.batch,), (sizes.batch, 1), (1, sizes.batch)):
        raise ValueError(f"seqlens_k has shape {shapes['seqlens_k']}, expected ({sizes.batch},)")
    if math.prod(shapes.get("total_sequence_length", ())) != 1:
        raise ValueError(f"total_sequence_length has shape {shapes['total_sequence_length']}, expected one value")
    if attributes.do_rotary:
        if "cos_cache" not in shapes:
            raise ValueError("do_rotary is 1 without cos_cache and sin_cache")
        cos = shapes["cos_cache"]
        if len(cos) != 2 or 2 * cos[1] > head_dim:
            raise ValueError(f"cos_cache has shape {cos}, expected (positions, at most {head_dim // 2})")
        check_shape("sin_cache", shapes["sin_cache"], cos)
        check_shape("position_ids", shapes.get("position_ids", shapes["query"][:2]), shapes["query"][:2])
    if "attention_bias" in shapes:
        bias = shapes["attention_bias"]
        if len(bias) != 4 or bias[0] not in (1, sizes.batch) or bias[1] not in (1, heads) or bias[2] != sizes.queries:
            raise ValueError(
                f"attention_bias has shape {bias}, expected (1 or {sizes.batch}, 1 or {heads}, {sizes.queries}, "
                "total_sequence_length)"
            )
    expected = {"head_sink": (heads,), "q_norm_weight": (head_dim,), "k_norm_weight": (head_dim,)}
    for name, shape in expected.items():
        check_shape(name, shapes.get(name, shape), shape)
    for name, kind in (("k_scale", attributes.k_quant_type), ("v_scale", attributes.v_quant_type)):
        if (name in shapes) != attributes.quantized:
            raise ValueError(f"{name} is {'given' if name in shapes else 'missing'} where its quant_type is {kind}")
        channelwise = (
            (1, kv_heads, 1, head_dim),
            (kv_heads, 1, head_dim),
            (kv_heads, head_dim),
            (kv_heads * head_dim,),
        )
        if kind == "PER_TENSOR" and math.prod(shapes[name]) != 1:
            raise ValueError(f"{name} has shape {shapes[name]}, expected one value")
        if kind == "PER_CHANNEL" and shapes[name] not in channelwise:
            raise ValueError(f"{name} has shape {shapes[name]}, expected one of {', '.join(map(str, channelwise))}")
