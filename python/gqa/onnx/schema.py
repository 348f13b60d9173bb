"""What the schemas of the operators have in common: type variables, attributes, inputs split into heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gqa.arguments import Array
from gqa.dtypes import require_float
from gqa.rules import check_group
from gqa.shapes import Shape, check_int

# The floating-point types by their codes in onnx.TensorProto.
PRECISIONS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


@dataclass(frozen=True)
class AttentionShapes:
    """The sizes of a call of Attention or FlexAttention, inputs of three axes split into heads."""

    batch: int
    query_heads: int
    kv_heads: int
    queries: int
    past_keys: int
    new_keys: int
    head_dim: int
    v_head_dim: int

    @property
    def keys(self) -> int:
        return self.past_keys + self.new_keys

    @property
    def out(self) -> Shape:
        return self.batch, self.query_heads, self.queries, self.v_head_dim

    @property
    def mask(self) -> Shape:
        return self.batch, self.query_heads, self.queries, self.keys


def check_names(
    names: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...], kind: str = "input"
) -> None:
    """Raise TypeError unless every required input, or attribute, is there, and no other than those named."""
    for name in names:
        if name not in required and name not in optional:
            raise TypeError(f"unknown {kind} {name!r}, expected one of {', '.join(dict.fromkeys(required + optional))}")
    for name in required:
        if name not in names:
            raise TypeError(f"{name} is missing")


def check_type_variable(dtypes: dict[str, str], *names: str) -> None:
    """Raise TypeError unless the inputs of these names, as far as they are given, are of one floating-point type."""
    given = [name for name in names if name in dtypes]
    for name in given:
        require_float(name, dtypes[name])
        if dtypes[name] != dtypes[given[0]]:
            raise TypeError(f"{name} has dtype {dtypes[name]}, expected {dtypes[given[0]]} as {given[0]}")


def check_integers(name: str, dtypes: dict[str, str]) -> None:
    """Raise TypeError unless that input, if given, holds integers."""
    if name in dtypes and not dtypes[name].startswith(("int", "uint")):
        raise TypeError(f"{name} has dtype {dtypes[name]}, expected integers")


def check_choice(name: str, value: Any, choices: tuple[int, ...]) -> int:
    """An integer attribute (a bool counts as 0 or 1); ValueError unless it is one of `choices`."""
    number = check_attribute(name, value)
    if number not in choices:
        raise ValueError(f"{name} is {number}, expected one of {', '.join(map(str, choices))}")
    return number


def check_attribute(name: str, value: Any, least: int | None = None) -> int:
    """An integer attribute; unlike other integers it may be a bool, which stands for 0 or 1."""
    return check_int(name, int(value) if isinstance(value, bool) else value, least)


def check_precision(value: Any) -> str | None:
    """The name of the type that the attribute softmax_precision asks for."""
    if value is None:
        return None
    return PRECISIONS[check_choice("softmax_precision", value, tuple(PRECISIONS))]


def split_shape(name: str, shape: Shape, heads: int, attribute: str) -> Shape:
    """(B, S, H * D) as (B, H, S, D)."""
    batch, tokens, channels = shape
    if channels % heads:
        raise ValueError(f"{name} has {channels} channels, which is not a multiple of {attribute} {heads}")
    return batch, heads, tokens, channels // heads


def split_heads(x: Array, heads: int) -> Array:
    """(B, S, H * D) as a view (B, H, S, D)."""
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, heads, channels // heads).swapaxes(1, 2)


def grouped_shapes(shapes: dict[str, Shape]) -> AttentionShapes:
    """Check Q (B, Hq, S, D), K (B, Hkv, L, D), V (B, Hkv, L, Dv), past_key and past_value against each other."""
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(f"{name} has shape {shape}, expected 4 axes (batch, heads, tokens, channels)")
    batch, query_heads, queries, head_dim = shapes["Q"]
    kv_heads, new_keys, v_head_dim = shapes["K"][1], shapes["K"][2], shapes["V"][3]
    check_group("K", kv_heads, "Q", query_heads)
    past_keys = shapes["past_key"][2] if "past_key" in shapes else 0
    expected = {
        "K": (batch, kv_heads, new_keys, head_dim),
        "V": (batch, kv_heads, new_keys, v_head_dim),
        "past_key": (batch, kv_heads, past_keys, head_dim),
        "past_value": (batch, kv_heads, past_keys, v_head_dim),
    }
    for name, shape in expected.items():
        for axis, got, want in zip(("batch", "heads", "tokens", "channels"), shapes.get(name, shape), shape):
            if got != want:
                raise ValueError(
                    f"{name} has {axis} {got}, expected {want}: (batch, heads, tokens, channels) = {shape}"
                )
    return AttentionShapes(
        batch=batch, query_heads=query_heads, kv_heads=kv_heads, queries=queries,
        past_keys=past_keys, new_keys=new_keys, head_dim=head_dim, v_head_dim=v_head_dim,
    )  # fmt: skip
