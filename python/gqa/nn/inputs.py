"""The inputs of attention layers, checked."""

from __future__ import annotations

from gqa.arguments import AnyArray, Array, as_array, dtype_name
from gqa.dtypes import require_float
from gqa.shapes import check_shape


def read_inputs(
    inputs_q: AnyArray,
    inputs_k: AnyArray | None,
    inputs_v: AnyArray | None,
    in_features: int,
    in_kv_features: int,
) -> dict[str, Array]:
    """Arrays (..., Q, in_features) and twice (..., K, in_kv_features) by name; those left out are the one before.

    Raises
    ------
    TypeError
        If one holds no floats.
    ValueError
        For other shapes, or inputs_v without inputs_k.
    """
    if inputs_v is not None and inputs_k is None:
        raise ValueError("inputs_v is given without inputs_k")
    inputs_k = inputs_q if inputs_k is None else inputs_k
    inputs_v = inputs_k if inputs_v is None else inputs_v
    given = {"inputs_q": inputs_q, "inputs_k": inputs_k, "inputs_v": inputs_v}
    inputs = {name: as_array(name, x) for name, x in given.items()}
    for name, x in inputs.items():
        features = in_features if name == "inputs_q" else in_kv_features
        require_float(name, dtype_name(name, x))
        if x.ndim < 2 or x.shape[-1] != features:
            raise ValueError(f"{name} has shape {x.shape}, expected (..., length, {features})")
    keys = inputs["inputs_k"].shape
    check_shape("inputs_k", keys, (*inputs["inputs_q"].shape[:-2], *keys[-2:]))
    check_shape("inputs_v", inputs["inputs_v"].shape, keys)
    return inputs
