"""com.microsoft GroupQueryAttention from shapes and dtypes alone: its attributes, and what fits together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gqa.dtypes import name_of, require_float
from gqa.onnx.schema import check_choice, check_integers, check_names, check_type_variable
from gqa.shapes import Shape, check_broadcast, check_float, check_int, check_shape

INPUTS = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight",
)  # fmt: skip
PAIRS = (
    ("key", "value"), ("past_key", "past_value"), ("cos_cache", "sin_cache"), ("q_norm_weight", "k_norm_weight"),
)  # fmt: skip
CACHE_TYPES = {8: "int8", 4: "uint8"}


@dataclass(frozen=True)
class GroupQueryAttributes:
    """The attributes of GroupQueryAttention."""

    num_heads: Any
    kv_num_heads: Any
    scale: Any = None
    softcap: Any = 0.0
    local_window_size: Any = -1
    causal: Any = 1
    do_rotary: Any = 0
    rotary_interleaved: Any = 0
    smooth_softmax: Any = -1
    qk_output: Any = 0
    k_quant_type: Any = "NONE"
    v_quant_type: Any = "NONE"
    kv_cache_bit_width: Any = 0
    sliding_window_cache: Any = 0
    qk_norm_epsilon: Any = 1e-6

    def __post_init__(self) -> None:
        check_int("num_heads", self.num_heads, 1)
        check_int("kv_num_heads", self.kv_num_heads, 1)
        if self.num_heads % self.kv_num_heads:
            raise ValueError(f"kv_num_heads is {self.kv_num_heads}, which does not divide num_heads {self.num_heads}")
        if self.scale is not None:
            check_float("scale", self.scale)
        check_float("softcap", self.softcap, 0.0)
        check_float("qk_norm_epsilon", self.qk_norm_epsilon, 0.0)
        check_int("local_window_size", self.local_window_size, -1)
        for name in ("causal", "do_rotary", "rotary_interleaved", "sliding_window_cache"):
            check_choice(name, getattr(self, name), (0, 1))
        check_choice("smooth_softmax", self.smooth_softmax, (-1, 0, 1))
        check_choice("qk_output", self.qk_output, (0, 1, 2))
        if not self.causal and self.local_window_size != -1:
            raise ValueError(f"local_window_size is {self.local_window_size}, expected -1 where causal is 0")
        if self.sliding_window_cache and self.local_window_size < 1:
            raise ValueError(f"local_window_size is {self.local_window_size}, sliding_window_cache needs at least 1")
        kinds = ("NONE", "PER_TENSOR", "PER_CHANNEL")
        for name in ("k_quant_type", "v_quant_type"):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(kinds)}")
        if (self.k_quant_type == "NONE") != (self.v_quant_type == "NONE"):
            raise ValueError(
                f"k_quant_type is {self.k_quant_type} and v_quant_type {self.v_quant_type}: NONE is for both"
            )
        check_choice("kv_cache_bit_width", self.kv_cache_bit_width, (4, 8) if self.quantized else (0,))

    @property
    def quantized(self) -> bool:
        return bool(self.k_quant_type != "NONE")

    def cache_type(self, dtype: str) -> str:
        """The dtype of past and present for a query of that dtype."""
        return CACHE_TYPES[self.kv_cache_bit_width] if self.quantized else dtype

    def cache_channels(self, head_dim: int) -> int:
        """Elements that one head of one token takes in past and present: 4-bit values lie two in a byte."""
        return head_dim // 2 if self.kv_cache_bit_width == 4 else head_dim


@dataclass(frozen=True)
class GroupQueryShapes:
    """The sizes of one call. `shared`: keys come from the past alone. `packed`: query holds keys and values too."""

    batch: int
    queries: int
    query_heads: int
    kv_heads: int
    head_dim: int
    cache_channels: int
    capacity: int | None  # tokens that the past has room for; None without a past
    shared: bool
    packed: bool

    def present(self, total: int, sliding: bool) -> Shape:
        """The shape of present_key and present_value."""
        capacity = self.capacity or 0
        return (
            self.batch,
            self.kv_heads,
            capacity if sliding or self.shared else max(capacity, total),
            self.cache_channels,
        )

    @property
    def output(self) -> Shape:
        return self.batch, self.queries, self.query_heads * self.head_dim

    def check_total(self, total: int, sliding: bool) -> None:
        """The keys must fit: into the past's buffer, or into the past and the new tokens together."""
        name = f"total_sequence_length is {total}"
        if total < max(self.queries, 1):
            raise ValueError(f"{name}, expected at least the {self.queries} tokens of query, and 1")
        capacity = self.capacity or 0
        if sliding or total <= capacity:
            return
        if self.shared:
            raise ValueError(f"{name}, expected at most the {capacity} tokens of past_key")
        if total != capacity + self.queries:
            raise ValueError(
                f"{name}, expected at most the {capacity} tokens of past_key, or exactly {capacity + self.queries} "
                f"with the {self.queries} new ones"
            )


def group_query_shapes(
    shapes: dict[str, Shape], dtypes: dict[str, str], attributes: GroupQueryAttributes, total: int | None
) -> GroupQueryShapes:
    """Check the inputs against each other and against the attributes; `total` is total_sequence_length, if known."""
    check_names(shapes, ("query",), INPUTS)
    for one, other in PAIRS:
        if (one in shapes) != (other in shapes):
            given, missing = (one, other) if one in shapes else (other, one)
            raise ValueError(f"{given} is given without {missing}")
    _check_types(dtypes, attributes)
    sizes = _sizes(shapes, attributes)
    sliding = bool(attributes.sliding_window_cache)
    if sliding and (sizes.shared or sizes.capacity is None or sizes.capacity < attributes.local_window_size):
        raise ValueError(
            f"sliding_window_cache needs key, value and a past of at least local_window_size "
            f"{attributes.local_window_size} tokens"
        )
    if total is not None:
        sizes.check_total(total, sliding)
    _check_others(shapes, attributes, sizes, total)
    return sizes


def infer(shapes: dict[str, Shape], dtypes: dict[str, Any], attrs: dict[str, Any]) -> dict[str, tuple[Shape, str]]:
    """The outputs of GroupQueryAttention; output_qk only where the attribute qk_output asks for it."""
    names = {name: name_of(dtype) for name, dtype in dtypes.items()}
    others = {name: value for name, value in attrs.items() if name != "total_sequence_length"}
    attributes = GroupQueryAttributes(**others)
    total = attrs.get("total_sequence_length")
    if total is not None:
        total = check_int("total_sequence_length", total)
    sizes = group_query_shapes(shapes, names, attributes, total)
    sliding = bool(attributes.sliding_window_cache)
    if total is None and sizes.capacity is None:
        total = sizes.queries
    if total is None and (attributes.qk_output or not (sliding or sizes.shared)):
        raise ValueError("total_sequence_length is missing in attrs: the shapes of the outputs depend on it")
    present = sizes.present(total or 0, sliding), attributes.cache_type(names["query"])
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
    shared = packed = False
    if "key" in shapes:
        head_dim = channels // heads
        if channels != heads * head_dim:
            raise ValueError(f"query has {channels} channels, which is not a multiple of num_heads {heads}")
        shared = past is not None and shapes["key"][1] == 0
        tokens = 0 if shared else queries
        for name in ("key", "value"):
            check_shape(name, shapes[name], (batch, tokens, kv_heads * head_dim))
    elif past is not None:
        head_dim = past[3] * 2 if attributes.kv_cache_bit_width == 4 else past[3]
        shared, packed = channels == heads * head_dim, channels == (heads + 2 * kv_heads) * head_dim
        if not shared and not packed:
            raise ValueError(
                f"query has {channels} channels, expected {heads * head_dim} to attend past_key {past} alone, or "
                f"{(heads + 2 * kv_heads) * head_dim} for packed query, key and value"
            )
        shared = shared and not packed
    else:
        packed = True
        head_dim = channels // (heads + 2 * kv_heads)
        if channels != (heads + 2 * kv_heads) * head_dim:
            raise ValueError(
                f"query has {channels} channels, which is not a multiple of num_heads + 2 * kv_num_heads = "
                f"{heads + 2 * kv_heads}; key and value may only be left out when it holds them, or with a past"
            )
    cache_channels = attributes.cache_channels(head_dim)
    if attributes.kv_cache_bit_width == 4 and head_dim % 2:
        raise ValueError(f"query has heads of {head_dim} channels, expected an even number for a 4-bit cache")
    capacity = None if past is None else past[2]
    for name in ("past_key", "past_value"):
        if name in shapes:
            check_shape(name, shapes[name], (batch, kv_heads, capacity or 0, cache_channels))
    return GroupQueryShapes(batch, queries, heads, kv_heads, head_dim, cache_channels, capacity, shared, packed)


def _check_others(
    shapes: dict[str, Shape], attributes: GroupQueryAttributes, sizes: GroupQueryShapes, total: int | None
) -> None:
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
        if len(bias) != 4 or bias[2] != sizes.queries or (total is not None and bias[3] != total):
            rows = (sizes.batch, heads, sizes.queries, "total_sequence_length" if total is None else total)
            raise ValueError(
                f"attention_bias has shape {bias}, expected (1 or {rows[0]}, 1 or {rows[1]}, {rows[2]}, {rows[3]})"
            )
        check_broadcast("attention_bias", bias, (sizes.batch, heads, *bias[2:]))
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
