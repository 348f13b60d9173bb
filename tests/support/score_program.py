"""Score programs made by hand, and what NumPy says that they give."""

from __future__ import annotations

import numpy as np

from extension_call import attention
from gqa import _core
from gqa.options import Options

KINDS = {"float": np.float64, "whole": np.int64, "bool": np.bool_}
INPUTS = ("score", "b", "h", "q_idx", "kv_idx")


def _floor_divide(x, y):
    return np.where(y == 0, 0, x // np.where(y == 0, 1, y)) if x.dtype.kind == "i" else x // y


def _mod(x, y):
    return np.where(y == 0, 0, x % np.where(y == 0, 1, y)) if x.dtype.kind == "i" else x % y


def _to_whole(x):
    limit = 2.0**31 - 1
    return np.nan_to_num(np.trunc(x), nan=0.0, posinf=limit, neginf=-limit - 1).clip(-limit - 1, limit).astype(int)


# What each operation is in NumPy, of whatever kinds.
NUMPY = {
    "to_float": lambda x: x.astype(float), "to_whole": _to_whole, "to_bool": lambda x: x != 0,
    "neg": lambda x: -x, "abs": np.abs, "sign": np.sign, "exp": np.exp, "exp2": np.exp2, "log": np.log, "tanh": np.tanh,
    "sqrt": np.sqrt, "floor": np.floor, "sin": np.sin, "cos": np.cos, "isfinite": np.isfinite, "not": np.invert,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": _floor_divide, "mod": _mod,
    "pow": np.power, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "shl": lambda x, n: np.where(n > 31, 0, x << n.clip(0, 31)),
    "shr": lambda x, n: x >> n.clip(0, 63), "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
    "where": np.where,
}  # fmt: skip


class Builder:
    """Instructions, one value each; a value is its number."""

    def __init__(self):
        self.instructions, self.arrays = [], []
        self._inputs = {}

    def __call__(self, name, kind, *operands, payload=None):
        self.instructions.append((name, kind, operands, payload))
        return len(self.instructions) - 1

    def input(self, name):
        if name not in self._inputs:
            self._inputs[name] = self(name, "float" if name == "score" else "whole")
        return self._inputs[name]

    def constant(self, value, kind=None):
        kinds = {bool: "bool", int: "whole", float: "float"}
        return self("constant", kind or kinds[type(value)], payload=value)

    def gather(self, array, *indices, from_end=None):
        self.arrays.append(np.asarray(array))
        kind = {"f": "float", "i": "whole", "u": "whole", "b": "bool"}[self.arrays[-1].dtype.kind]
        payload = (len(self.arrays) - 1, from_end or (False,) * len(indices))
        return self("gather", kind, *indices, payload=payload)

    def kind(self, value):
        return self.instructions[value][1]

    def bind(self, **outputs):
        """What Options.program holds."""
        kinds = {"f": "float", "i": "whole", "u": "whole", "b": "bool"}
        declared = [(a.ndim, kinds[a.dtype.kind], f"table {i}") for i, a in enumerate(self.arrays)]
        return _core.ScoreProgram(self.instructions, outputs, declared), tuple(self.arrays)

    def values(self, score, b, h, q_idx, kv_idx):
        """Every value, computed with NumPy in float64 and int64; arguments that broadcast."""
        inputs = dict(zip(INPUTS, (score, b, h, q_idx, kv_idx)))
        values = []
        for name, kind, operands, payload in self.instructions:
            x = [values[i] for i in operands]
            if name in inputs:
                value = inputs[name]
            elif name == "constant":
                value = payload
            elif name == "gather":
                array, from_end = self.arrays[payload[0]], payload[1]
                index = [np.where(e & (i < 0), i + n, i) for i, n, e in zip(x, array.shape, from_end)]
                value = array[tuple(i.clip(0, n - 1) for i, n in zip(index, array.shape))]
            else:
                with np.errstate(all="ignore"):
                    value = NUMPY[name](*x)
            values.append(np.asarray(value).astype(KINDS[kind]))
        return values


def attend(q, k, v, program, **options):
    return attention(q=q, k=k, v=v, **(Options(program=program, **options)._asdict()))


def expected(q, k, v, builder, score=None, mask=None):
    """Attention with values `score` and `mask` of a program, in float64: (out, lse)."""
    batch, heads, queries, channels = q.shape
    k, v = (np.repeat(x.astype(float), heads // x.shape[1], axis=1) for x in (k, v))
    keys = k.shape[2]
    scores = q.astype(float) @ k.swapaxes(-1, -2) / np.sqrt(channels)
    positions = np.arange(queries)[:, None] + keys - queries
    coordinates = np.arange(batch)[:, None, None, None], np.arange(heads)[:, None, None], positions, np.arange(keys)
    values = builder.values(scores, *coordinates)
    if score is not None:
        scores = np.broadcast_to(values[score], scores.shape)
    if mask is not None:
        scores = np.where(values[mask], scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + np.where(np.isinf(top), 0, top))[..., 0]
    return weights @ v / np.where(total == 0, 1, total), lse
