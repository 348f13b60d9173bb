"""What the core refuses, in words: an exception type and a sentence for each of its rules (csrc/refusal.h).

The core calls :func:`error` and raises what that returns. A sentence is formatted with the fields of the refusal
that its rule fills in: the argument, what came, what was expected.
"""

from __future__ import annotations

from typing import Any

from gqa.dtypes import FLOATS

_FLOATS = ", ".join(FLOATS)

SENTENCES: dict[str, tuple[type[Exception], str]] = {
    # kinds
    "tensor_kind": (
        TypeError,
        "{argument} is a {value.__class__.__name__}, expected a NumPy array, or a tensor with __dlpack__",
    ),
    "quantized": (TypeError, "{argument} is quantised, expected an array of " + _FLOATS),
    "byte_order": (TypeError, "{argument} has dtype {value.str!r}, expected native byte order"),
    "float_dtype": (TypeError, "{argument} has dtype {dtype}, expected " + _FLOATS + "{hint}"),
    "mask_dtype": (TypeError, "{argument} has dtype {dtype}, expected bool, " + _FLOATS),
    "mask_grad": (
        TypeError,
        "{argument} has dtype bool, which has no gradient; expected " + _FLOATS + " with mask_grad",
    ),
    "scale_dtype": (
        TypeError,
        "{argument} has data of {value[0]} and a scale of {value[1]}, expected int8 and float32",
    ),
    "integer_dtype": (TypeError, "{argument} has dtype {value}, expected integers"),
    "dtype_as": (TypeError, "{argument} has dtype {dtype}, expected {expected_dtype} as {other}"),
    "dtype_name": (TypeError, "{argument} is {value}, expected " + _FLOATS),
    "out_dtype": (
        TypeError,
        "{argument} is {dtype}, expected {expected_dtype} as q, or float32 for a q of half precision",
    ),
    "device": (ValueError, "{argument} is on the device {value}, expected the CPU"),
    "exchange": (
        ValueError,
        "{argument}, a {value[0].__class__.__name__}, does not give its memory to others{advice}: {value[1]}",
    ),
    "integer": (TypeError, "{argument} is {value!r}, expected an integer"),
    "flag": (TypeError, "{argument} is {value!r}, expected True or False"),
    "real": (TypeError, "{argument} is {value!r}, expected a float"),
    "window_kind": (TypeError, "{argument} is {value!r}, expected a tuple (left, right)"),
    "layout_kind": (TypeError, "{argument} is {value!r}, expected a string"),
    "stores": (TypeError, "{argument} must be a tuple of at least one store"),
    "table": (TypeError, "{argument} must be a C-contiguous array of int64 with {value} columns"),
    # values
    "layout_name": (ValueError, "{argument} is {value!r}, expected one of 'bhsd', 'bshd'"),
    "bounds": (
        ValueError,
        "{argument} is ({number}, {expected}), expected bounds of at least 0, or None for no bound",
    ),
    "at_least": (ValueError, "{argument} is {value}, expected at least 1"),
    "finite": (ValueError, "{argument} is {real}, expected a finite number"),
    "magnitude": (ValueError, "{argument} is {real}, expected a number from -1e30 to 1e30"),
    "not_negative": (ValueError, "{argument} is {real}, expected a finite number of at least 0"),
    "overflow": (ValueError, "{argument} is too large for a float"),
    "length": (ValueError, "{argument}[{index}] is {number}, expected 0 to {expected}, the number of keys"),
    # shapes
    "missing": (ValueError, "{argument} is given without {other}"),
    "no_keys": (ValueError, "k and v are needed, or past_key and past_value to attend a cache alone"),
    "axes": (ValueError, "{argument} has shape {shape}, expected ({axis}), or three axes without the batch"),
    "axes_as": (
        ValueError,
        "{argument} has shape {shape}, expected {expected} axes ({axis}) as {other} {expected_shape}",
    ),
    "at_most": (ValueError, "{argument} has {axis} {number}, expected at most {expected}"),
    "heads": (ValueError, "{argument} has {number} heads, which does not divide the {expected} heads of {other}"),
    "size_as": (ValueError, "{argument} has {axis} {number}, expected {expected} as {other}"),
    "count_as": (ValueError, "{argument} has {number} {axis}, expected {expected} as {other}"),
    "shape": (ValueError, "{argument} has shape {shape}, expected {expected_shape}"),
    "scale": (ValueError, "the scale of {argument} has shape {shape}, expected {expected_shape}"),
    "broadcast": (ValueError, "{argument} has shape {shape}, which does not broadcast to {expected_shape}"),
    # memory
    "read_only": (ValueError, "{argument} is read-only"),
    "shares_itself": (ValueError, "{argument} has elements that share memory"),
    "overlap": (ValueError, "{argument} overlaps {other} in memory"),
    "overlap_scale": (ValueError, "{argument} overlaps the scale of {other} in memory"),
    # score programs
    "program_kind": (TypeError, "{argument} is {value!r}, expected a traced program and a tuple of its arrays"),
    "program_dtype": (TypeError, "{argument} has dtype {value[0]}, expected {value[1]} as when it was traced"),
    "program_arrays": (ValueError, "score_mod or mask_mod has {number} captured arrays, expected {expected}"),
    "program_rank": (ValueError, "{argument} has {number} axes, expected {expected} as when it was traced"),
    "program_empty": (ValueError, "{argument} has shape {shape}, expected at least 1 element"),
    "program_value": (
        ValueError,
        "{argument} holds {number}, which whole numbers of 32 bits, those of a call in float32, do not reach",
    ),
    "program_constant": (
        ValueError,
        "score_mod or mask_mod has the whole number {number}, which those of 32 bits, those of a call in float32, do "
        "not reach",
    ),
    # caches
    "cache_axes": (ValueError, "{argument} has shape {shape}, expected ({axis})"),
    "shares_cache": (ValueError, "k or v shares memory with the cache; give it a copy"),
    "not_finite": (ValueError, "{argument} holds NaN, infinity or values too large for a scale in float32"),
    "taken": (ValueError, "{argument}[{index}] is {number}, expected 0 to {expected}, the tokens of k"),
    "capacity": (
        ValueError,
        "sequence {index} has {number} tokens and takes {expected} more, past the capacity of {limit}",
    ),
    "dropped": (
        ValueError,
        "row 0 of sequence {index} sees tokens from {number} on, but the ring has dropped those before {expected}",
    ),
    "lengths_alone": (ValueError, "{argument} is given without k and v, whose tokens it counts"),
    "packed": (ValueError, "{argument} has {number} tokens, expected {expected}, the sum of {other}"),
    # rows of the tables that gqa makes for the core
    "rows": (ValueError, "the sequences have more runs than there are"),
    "store": (ValueError, "run {index} names store {number}, which does not exist"),
    "run": (ValueError, "run {index} is not within its store"),
    "sequence": (ValueError, "sequence {index} is not within q"),
    "keys": (ValueError, "sequence {index} has {number} keys or more, expected 0 to {expected}"),
    "origin": (ValueError, "sequence {index} begins at key {number}, expected 0 to {expected}"),
    "masked_sequence": (ValueError, "sequence {index} is not within the mask"),
    "slot": (ValueError, "sequence or subtree {index} names slot {number}, expected 0 to {expected}"),
    "contiguous": (ValueError, "the last axis of {argument} is not contiguous"),
    "subtree": (ValueError, "subtree {index} has number {number}, expected at least {expected}"),
}


def error(rule: str, argument: str, **fields: Any) -> Exception:
    """The exception for an argument that broke a rule."""
    kind, sentence = SENTENCES[rule]
    if rule in ("float_dtype", "mask_dtype"):
        fields["dtype"] = getattr(fields["value"], "name", fields["value"])
        fields["hint"] = ", or an int8 array wrapped by gqa.Quantized" if fields["dtype"] == "int8" else ""
    elif rule == "exchange":
        gradient = getattr(fields["value"][0], "requires_grad", False) is True
        fields["advice"] = " while it requires a gradient (call its detach())" if gradient else ""
    raised = kind(sentence.format(argument=argument, **fields))
    if rule == "exchange" and isinstance(fields["value"][1], BaseException):
        raised.__cause__ = fields["value"][1]
    return raised
