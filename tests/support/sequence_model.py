"""What a cache must amount to: for each sequence two plain arrays in float64, concatenated and cut by NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import gqa
import oracle

# For assert_close, by the dtype of a store: int8 may be multiplied as integers, within 2e-5 of what it stands for.
MAGNITUDES = {"int8": 10.0}


@dataclass(frozen=True)
class Sequence:
    """keys (tokens, kv_heads, head_dim) and values, as the storage of a dtype represents them."""

    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def empty(cls, kv_heads, head_dim, v_head_dim):
        return cls(np.zeros((0, kv_heads, head_dim)), np.zeros((0, kv_heads, v_head_dim)))

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, tokens):
        return Sequence(self.keys[tokens], self.values[tokens])

    def append(self, k, v, dtype):
        pairs = ((self.keys, k), (self.values, v))
        return Sequence(*(np.concatenate([x, as_stored(new, dtype)]) for x, new in pairs))

    def attend(self, q, **options):
        """(out, lse) of q (queries, heads, head_dim)."""
        return oracle.attention(q, self.keys, self.values, layout="bshd", **{"causal": True} | options)


def as_stored(x, dtype):
    """Tokens in float64, after storing them in a dtype has rounded them."""
    return oracle.wide(gqa.quantize(x) if dtype == "int8" else x.astype(dtype))


def bytes_of(*tensors):
    """Everything that is stored, to see that a call has written nothing."""
    return [x.tobytes() for t in tensors for x in ((t.data, t.scale) if isinstance(t, gqa.Quantized) else (t,))]
