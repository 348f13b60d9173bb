"""ai.onnx Attention from shapes and dtypes alone: its attributes, and what fits together at which opset."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from gqa.dtypes import name_of, require_float
from gqa.onnx.schema import (
    AttentionShapes,
    check_attribute,
    check_choice,
    check_integers,
    check_names,
    check_precision,
    check_type_variable,
    grouped_shapes,
    split_shape,
)
from gqa.rules import check_pair
from gqa.shapes import Shape, check_broadcast, check_flag, check_float, check_int, check_shape

FARTHEST = 1 << 62


@dataclass(frozen=True)
class AttentionAttributes:
    """The attributes of Attention, the opset that gives them their meaning, and the outputs asked for."""

    is_causal: Any = 0
    scale: Any = None
    softcap: Any = 0.0
    q_num_heads: Any = None
    kv_num_heads: Any = None
    softmax_precision: Any = None
    qk_matmul_output_mode: Any = 0
    left_window_size: Any = -1
    right_window_size: Any = -1
    opset: Any = 25
    present: Any = None
    qk_matmul_output: Any = False

    def __post_init__(self) -> None:
        check_int("opset", self.opset, 23)
        check_attribute("is_causal", self.is_causal)
        if self.scale is not None:
            check_float("scale", self.scale)
        check_float("softcap", self.softcap, 0.0)
        for name in ("q_num_heads", "kv_num_heads"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        check_precision(self.softmax_precision)
        check_choice("qk_matmul_output_mode", self.qk_matmul_output_mode, (0, 1, 2, 3))
        for name in ("left_window_size", "right_window_size"):
            if check_int(name, getattr(self, name), -1) >= 0 and self.opset < 25:
                raise ValueError(f"{name} is {getattr(self, name)}, expected -1: windows come with opset 25")
        if self.present is not None:
            check_flag("present", self.present)
        check_flag("qk_matmul_output", self.qk_matmul_output)

    @property
    def causal(self) -> bool:
        return bool(self.is_causal == 1)

    @property
    def window(self) -> tuple[int | None, int | None]:
        """Keys before and after the query's position; None: no bound."""
        left, right = (
            None if n == -1 else min(int(n), FARTHEST) for n in (self.left_window_size, self.right_window_size)
        )
        return left, right


def attention_sizes(
    shapes: dict[str, Shape], dtypes: dict[str, str], attributes: AttentionAttributes
) -> AttentionShapes:
    """Check the inputs against each other and against the attributes."""
    opset = attributes.opset
    check_names(shapes, ("Q", "K", "V"), ("attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"))
    check_type_variable(dtypes, "Q", "K", "past_key")
    check_type_variable(dtypes, "V", "past_value")
    if dtypes.get("attn_mask", "bool") != "bool" and "int" not in dtypes["attn_mask"]:
        require_float("attn_mask", dtypes["attn_mask"])
    check_integers("nonpad_kv_seqlen", dtypes)
    check_pair("past_key", "past_value", shapes)

    sizes = grouped_shapes(_four_axes(shapes, attributes))
    if "nonpad_kv_seqlen" in shapes:
        if opset < 24:
            raise ValueError(f"nonpad_kv_seqlen is given at opset {opset}, expected at least 24")
        if "past_key" in shapes:
            raise ValueError("nonpad_kv_seqlen is given with past_key, expected one of the two")
        if opset >= 25 and attributes.present:
            raise ValueError("nonpad_kv_seqlen is given with present outputs, which opset 25 forbids")
        check_shape("nonpad_kv_seqlen", shapes["nonpad_kv_seqlen"], (sizes.batch,))
    if "attn_mask" in shapes:
        _check_mask(shapes["attn_mask"], sizes, opset)
    return sizes


def infer(shapes: dict[str, Shape], dtypes: dict[str, Any], attrs: dict[str, Any]) -> dict[str, tuple[Shape, str]]:
    """The outputs of Attention; qk_matmul_output only if attrs speak of it."""
    names = {name: name_of(dtype) for name, dtype in dtypes.items()}
    check_names(attrs, (), tuple(field.name for field in fields(AttentionAttributes)), "attribute")
    attributes = AttentionAttributes(**attrs)
    sizes = attention_sizes(shapes, names, attributes)
    rows = (sizes.batch, sizes.kv_heads, sizes.keys)
    outputs = {
        "Y": (output_shape(sizes, len(shapes["Q"])), names["Q"]),
        "present_key": ((*rows, sizes.head_dim), names["K"]),
        "present_value": ((*rows, sizes.v_head_dim), names["V"]),
    }
    if attributes.qk_matmul_output or "qk_matmul_output_mode" in attrs:
        outputs["qk_matmul_output"] = (sizes.mask, names["Q"])
    return outputs


def output_shape(sizes: AttentionShapes, axes: int) -> Shape:
    """The shape of Y: that of Q, with the channels of V."""
    if axes == 3:
        return sizes.batch, sizes.queries, sizes.query_heads * sizes.v_head_dim
    return sizes.out


def _four_axes(shapes: dict[str, Shape], attributes: AttentionAttributes) -> dict[str, Shape]:
    """The shapes of Q, K, V and the past, with the heads of three-axis inputs split off."""
    axes = len(shapes["Q"])
    if axes not in (3, 4):
        raise ValueError(f"Q has shape {shapes['Q']}, expected 3 or 4 axes")
    for name in ("K", "V"):
        if len(shapes[name]) != axes:
            raise ValueError(f"{name} has shape {shapes[name]}, expected {axes} axes as Q {shapes['Q']}")
    heads = {"q_num_heads": ("Q",), "kv_num_heads": ("K", "V")}
    tensors = ("Q", "K", "V", "past_key", "past_value")
    split: dict[str, Shape] = {name: shapes[name] for name in tensors if name in shapes}
    for attribute, names in heads.items():
        number = getattr(attributes, attribute)
        if axes == 3:
            if number is None:
                raise ValueError(f"{attribute} is missing: Q, K and V have 3 axes")
            split |= {name: split_shape(name, shapes[name], number, attribute) for name in names}
        elif number is not None:
            if attributes.opset >= 25:
                raise ValueError(f"{attribute} is {number}, expected none: Q, K and V have 4 axes")
            if shapes[names[0]][1] != number:
                raise ValueError(f"{attribute} is {number}, but {names[0]} has shape {shapes[names[0]]}")
    return split


def _check_mask(shape: Shape, sizes: AttentionShapes, opset: int) -> None:
    """A mask broadcasts to (B, Hq, S, T), except that from opset 24 on its last axis may be any part of T."""
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"attn_mask has shape {shape}, expected 1 to 4 axes")
    if opset >= 24 and shape[-1] <= sizes.keys:
        shape = (*shape[:-1], sizes.keys)
    elif opset >= 24:
        raise ValueError(f"attn_mask has shape {shape}, expected at most {sizes.keys} keys")
    check_broadcast("attn_mask", shape, sizes.mask)
