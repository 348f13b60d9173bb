"""Score functions for tests: an evaluator of programs, and functions put together from random operations."""

from __future__ import annotations

import numpy as np

# What the core's operations mean, on float64, int64 and bool.
OPERATIONS = {
    "to_float": lambda x: x.astype(np.float64),
    "to_bool": lambda x: x != 0,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "isfinite": np.isfinite,
    "where": np.where,
}
DTYPES = {"float": np.float64, "whole": np.int64, "bool": np.bool_}


def evaluated(plan, arrays, inputs, replaced=lambda op, value: value):
    """The outputs of a program, by name; inputs holds score, b, h, q_idx and kv_idx as arrays that broadcast.

    replaced: from each value, and the operation that gave it, to what takes its place.
    """
    values = []
    with np.errstate(all="ignore"):
        for op, kind, operands, payload in plan.instructions:
            x = [values[n] for n in operands]
            if op in inputs:
                value = inputs[op]
            elif op == "constant":
                value = np.asarray(payload, DTYPES[kind])
            elif op == "gather":
                value = _gathered(np.asarray(arrays[payload[0]]), x, payload[1])
            elif op == "to_whole":
                finite = np.where(np.isnan(x[0]), 0.0, x[0]) if x[0].dtype.kind == "f" else x[0]
                value = np.clip(finite, -(2**62), 2**62).astype(np.int64)
            else:
                value = OPERATIONS[op](*x)
            value = np.asarray(value)
            values.append(value.astype(DTYPES[kind]) if op in ("gather", *inputs) else value)
            values[-1] = replaced(op, values[-1])
            assert values[-1].dtype == DTYPES[kind], (op, kind, values[-1].dtype)
    return {name: values[n] for name, n in plan.outputs.items()}


def _gathered(array, indices, from_end):
    sizes = array.shape
    wrapped = [np.where(i < 0, i + n, i) if end else i for i, n, end in zip(indices, sizes, from_end)]
    return array[tuple(np.clip(i, 0, n - 1) for i, n in zip(wrapped, sizes))]


def coordinates(batch=2, heads=3, queries=5, keys=7, offset=2):
    """b, h, q_idx and kv_idx of every score of a tensor (batch, heads, queries, keys)."""
    return {
        "b": np.arange(batch)[:, None, None, None],
        "h": np.arange(heads)[:, None, None],
        "q_idx": offset + np.arange(queries)[:, None],
        "kv_idx": np.arange(keys),
    }


# ---- random functions ----------------------------------------------------------------------------------------------


def _whole(x):
    return np.where(np.isfinite(x), np.clip(x, -1000, 1000), 0).astype(int)


# Kinds of the operands (f float, i whole, b bool, and n either of the first two), and what to do with them.
STEPS = {
    "add": ("nn", lambda x, y: x + y), "subtract": ("nn", lambda x, y: x - y), "multiply": ("nn", lambda x, y: x * y),
    "divide": ("nn", lambda x, y: x / y), "floor_divide": ("nn", lambda x, y: x // y),
    "mod": ("nn", lambda x, y: x % y),
    "add a bool": ("nb", lambda x, y: x + y), "bools": ("bb", lambda x, y: x + y),
    "by a bool": ("bn", lambda x, y: x * y),
    "less": ("nn", lambda x, y: x < y), "at most": ("nn", lambda x, y: x <= y), "greater": ("nn", lambda x, y: x > y),
    "at least": ("nn", lambda x, y: x >= y), "equal": ("nn", lambda x, y: x == y),
    "unequal": ("nn", lambda x, y: x != y),
    "equal bools": ("bb", lambda x, y: x == y), "unequal bools": ("bb", lambda x, y: x != y),
    "and": ("bb", lambda x, y: x & y), "or": ("bb", lambda x, y: x | y), "xor": ("bb", lambda x, y: x ^ y),
    "not": ("b", lambda x: ~x), "bits and": ("ii", lambda x, y: x & y), "bits or": ("ii", lambda x, y: x | y),
    "bits xor": ("ii", lambda x, y: x ^ y), "bits not": ("i", lambda x: ~x),
    "shift left": ("ii", lambda x, y: x << (y % 70)), "shift right": ("ii", lambda x, y: x >> (y % 70)),
    "minimum": ("nn", np.minimum), "maximum": ("nn", np.maximum), "clip": ("nnn", np.clip),
    "where": ("bnn", np.where), "where of a number": ("nnn", np.where), "where of bools": ("bbb", np.where),
    "logical_and": ("nn", np.logical_and), "logical_or": ("bn", np.logical_or), "logical_not": ("n", np.logical_not),
    "logical_xor": ("nb", np.logical_xor), "negative": ("n", lambda x: -x), "abs": ("n", abs), "sign": ("n", np.sign),
    "exp": ("n", np.exp), "exp2": ("n", np.exp2), "log": ("n", np.log), "tanh": ("n", np.tanh), "sqrt": ("n", np.sqrt),
    "floor": ("n", np.floor), "sin": ("n", np.sin), "cos": ("n", np.cos), "isfinite": ("n", np.isfinite),
    "isnan": ("n", np.isnan), "square": ("n", np.square), "power": ("n", lambda x: x**2),
    "power of two": ("i", lambda x: 2 ** np.clip(x, 0, 40)), "power of integers": ("ii", lambda x, y: x ** (y % 64)),
    "to a float": ("i", lambda x: x.astype(float)), "to an int": ("f", _whole),
    "to a bool": ("n", lambda x: x.astype(bool)), "int of a bool": ("b", lambda x: x.astype(np.int64)),
    "select": ("bbnnn", lambda c, d, x, y, z: np.select([c, d], [x, y + z], z)),  # a default alone NumPy does not show
    "full_like": ("f", lambda x: np.full_like(x, 0.5)), "divmod": ("ii", lambda x, y: sum(divmod(x, y))),
}  # fmt: skip
KINDS = {"f": "f", "i": "i", "b": "b", "n": "fi"}


def function_of(steps, constants, tables, last_alone=False):
    """score_mod of random steps: (name, choices), where the choices pick operands among earlier values of the kind.

    The same function computes with arrays and with symbols; both have a dtype. last_alone: it gives the last number as
    it is, else the score and a little of the last few.
    """

    def score_mod(score, b, h, q_idx, kv_idx):
        values = [score, b, h, q_idx, kv_idx, *constants, q_idx >= kv_idx]
        for name, choices in steps:
            if name == "index":  # as long as no index is out of range, as NumPy has it
                table = tables[choices[0] % len(tables)]
                whole = [x for x in values if kind_of(x) == "i"]
                indices = [whole[c % len(whole)] % n for c, n in zip(choices[1:], (4, 5))]
                values.append(table[tuple(indices)] if table.ndim == 2 else table[indices[0]])
                continue
            kinds, step = STEPS[name]
            operands = []
            for kind, choice in zip(kinds, choices):
                fitting = [x for x in values if kind_of(x) in KINDS[kind]]
                operands.append(fitting[choice % len(fitting)])
            if any(hasattr(x, "ndim") for x in operands):  # plain numbers alone are Python's own affair
                values.append(step(*operands))
        numbers = [x for x in values if kind_of(x) in "fi"]
        if last_alone:
            return numbers[-1]
        return score + sum(np.tanh(np.where(np.isfinite(x), x, 0.0) * 1e-3) for x in numbers[-4:])

    return score_mod


def kind_of(x):
    return "b" if isinstance(x, bool) else "i" if isinstance(x, int) else "f" if isinstance(x, float) else x.dtype.kind
