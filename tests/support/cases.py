"""The table of cases: sizes on both sides of every seam of the kernels, every option, and every pair of options.

Seams: a register tile has 4 to 32 rows; from 24 rows (group * queries) on, rows go into the lanes, with blocks of 96
keys, where one or two blocks take another path than three; with fewer rows blocks have 768 keys (256 of float64).
Splits have 768 keys, from 24 rows on 1536 and from 64 on 6144; a unit has up to 1024 rows.

A test of one case has the case in its name and runs alone: pytest 'tests/core/test_attention.py::test_case[...]'.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from dataclasses import dataclass

import numpy as np

import oracle

TENSORS = ("q", "k", "v", "past_key", "past_value")


@dataclass(frozen=True)
class Case:
    """One call; `keys` counts the past's, where the options have one."""

    heads: tuple[int, int] = (4, 2)
    queries: int = 3
    keys: int = 40
    head_dim: int = 16
    v_head_dim: int = 24
    batch: int = 2
    options: tuple[str, ...] = ()
    latent: bool = False  # v is a view of k

    def __str__(self):
        heads, head_dims = f"{self.heads[0]}/{self.heads[1]}", f"{self.head_dim}/{self.v_head_dim}"
        sizes = f"{self.batch}x{heads}x{self.queries}x{self.keys}x{head_dims}"
        return "-".join((sizes, *self.options, *["latent"] * self.latent))

    def arguments(self, dtype, layout="bhsd"):
        """The keyword arguments of the call, C-contiguous."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        new = self.keys - self.keys // 2 if "past" in self.options else self.keys

        def normal(heads, tokens, head_dim):
            return rng.standard_normal((self.batch, heads, tokens, head_dim)).astype(dtype)

        arguments = {"q": normal(self.heads[0], self.queries, self.head_dim)}
        for key, value, tokens in (("k", "v", new), ("past_key", "past_value", self.keys - new)):
            if key == "past_key" and "past" not in self.options:
                continue
            arguments[key] = normal(self.heads[1], tokens, self.head_dim)
            arguments[value] = normal(self.heads[1], tokens, self.v_head_dim)
        for option in self.options:
            arguments |= OPTIONS[option](self, rng, dtype)
        if layout == "bshd":
            arguments |= {
                name: np.ascontiguousarray(arguments[name].swapaxes(1, 2)) for name in TENSORS if name in arguments
            }
        if self.latent:
            arguments["v"] = arguments["k"][..., : self.v_head_dim]
        return arguments | {"layout": layout}

    def expected(self, dtype, layout="bhsd"):
        """(out, lse) of the oracle, in float64."""
        out, lse = _expected(self, np.dtype(dtype))
        return (out, lse) if layout == "bhsd" else (out.swapaxes(1, 2), lse.swapaxes(1, 2))


def tensors(rng, queries, keys, dtype=np.float32, *, batch=2, heads=(4, 2), head_dim=20, v_head_dim=12):
    """q, k and v of unit-normal data, where no table is needed."""
    shapes = ((heads[0], queries, head_dim), (heads[1], keys, head_dim), (heads[1], keys, v_head_dim))
    return [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes]


@functools.lru_cache(maxsize=4096)
def _expected(case, dtype):
    return oracle.attention(**case.arguments(dtype))


def _bool_mask(case, rng, dtype):
    mask = rng.random((case.batch, 1, case.queries, case.keys)) < 0.7
    mask[:1, :, -1:] = False  # a row without keys
    return {"mask": mask}


def _float_mask(case, rng, dtype):
    mask = rng.standard_normal((case.heads[0], case.queries, case.keys))
    mask[rng.random(mask.shape) < 0.2] = -np.inf
    mask[0, :1] = -np.inf  # a row without keys
    return {"mask": mask.astype(dtype)}


OPTIONS = {
    "past": lambda case, rng, dtype: {},
    "causal": lambda case, rng, dtype: {"causal": True},
    "offset": lambda case, rng, dtype: {"query_offset": rng.integers(-2, case.keys + 2, case.batch)},
    "window": lambda case, rng, dtype: {"window": (case.keys // 3, 2)},
    "lengths": lambda case, rng, dtype: {"kv_lengths": rng.integers(0, case.keys + 1, case.batch)},
    "bool_mask": _bool_mask,
    "float_mask": _float_mask,
    "scale": lambda case, rng, dtype: {"scale": -0.15},
    "softcap": lambda case, rng, dtype: {"softcap": 1.5},
    "sinks": lambda case, rng, dtype: {"sinks": rng.standard_normal(case.heads[0]).astype(dtype)},
}

HEADS = [
    Case(heads=heads, queries=queries, keys=50)
    for heads in ((1, 1), (4, 4), (4, 2), (8, 2), (9, 3), (5, 1), (14, 2), (33, 1))
    for queries in (1, 7)
]
HEAD_DIMS = [
    Case(head_dim=head_dim, v_head_dim=v_head_dim, queries=queries, keys=29, latent=latent)
    for head_dim, v_head_dim, latent in (
        *((n, n, False) for n in (1, 5, 8, 64, 80, 128, 256)),
        *((head_dim, v_head_dim, False) for head_dim, v_head_dim in ((5, 3), (2, 9), (13, 31), (33, 17), (7, 256))),
        *((576, 512, latent) for latent in (False, True)),
    )
    for queries in (1, 3, 21)
]
ROWS = [
    Case(heads=(group, 1), queries=rows // group, keys=100, batch=1)
    for group in (1, 3)
    for rows in (*range(1, 10), 12, 15, 16, 17, 21, 22, 23, 24, 25, 27, 31, 32, 33, 48, 49, 63, 64, 65, 66, 97)
    if rows % group == 0
]
KEYS = [
    Case(heads=(2, 1), queries=queries, keys=keys, batch=1, options=options)
    for queries in (1, 9, 13, 33)
    for keys in (0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 16, 17, 95, 96, 97, 191, 192, 193, 255, 256, 257, 289, 512, 513)
    for options in ((), ("causal", "past"))
]
EMPTY = [
    Case(**dict.fromkeys(names, 0), queries=queries)
    for names in (
        ("batch",), ("keys",), ("head_dim",), ("v_head_dim",), ("head_dim", "v_head_dim"), ("keys", "batch"),
        ("keys", "v_head_dim"),
    )
    for queries in (0, 3, 20)
] + [Case(queries=0), Case(heads=(0, 2))]  # fmt: skip
ONE_OPTION = [(option,) for option in OPTIONS]
TWO_OPTIONS = [pair for pair in itertools.combinations(OPTIONS, 2) if pair != ("bool_mask", "float_mask")]
MANY_OPTIONS = [
    ("past", "causal", "window", "lengths", "bool_mask", "scale", "softcap", "sinks"),
    ("past", "causal", "offset", "window", "lengths", "float_mask", "scale", "softcap", "sinks"),
]
WITH_OPTIONS = [
    Case(heads=heads, queries=queries, keys=keys, options=options)
    for options in ONE_OPTION + TWO_OPTIONS + MANY_OPTIONS
    for heads, queries, keys in (((6, 2), 1, 270), ((4, 2), 5, 30), ((6, 2), 9, 110), ((4, 2), 26, 203))
]
SEAMS = [
    Case(heads=(2, 1), queries=queries, keys=keys, batch=1, options=options)
    for queries, all_keys in (
        (1, (767, 768, 769, 1536, 1537, 2304, 2305, 3841)),
        (11, (767, 768, 769, 1537)),
        (12, (767, 768, 769, 1535, 1536, 1537, 4609)),
        (31, (1536, 1537, 6145)),
        (33, (6143, 6144, 6145, 12289, 18433)),
    )
    for keys in all_keys
    for options in ((), ("causal", "past"), ("window",))
]
TABLE = [*HEADS, *HEAD_DIMS, *ROWS, *KEYS, *EMPTY, *WITH_OPTIONS, *SEAMS]

# The table without its repetitions: every size, and the options that bring arrays of their own.
_ARRAYS = {"past", "bool_mask", "float_mask", "sinks", "lengths"}
ALL_ARRAYS = [case for case in TABLE if len(case.options) <= 1 or _ARRAYS.issuperset(case.options) or case in KEYS]

# Long enough for several threads, and for splits where rows are few.
LONG = [
    Case(heads=heads, queries=queries, keys=keys, head_dim=64, v_head_dim=64, batch=batch, options=options)
    for heads, queries, keys, batch, options in (
        ((4, 1), 1, 767, 1, ()),
        ((4, 1), 1, 768, 1, ()),
        ((4, 1), 1, 769, 1, ()),
        ((8, 2), 1, 2305, 1, ("sinks",)),
        ((2, 1), 8, 2305, 1, ("causal", "past")),
        ((4, 2), 3, 1600, 2, ("lengths", "softcap")),
        ((3, 1), 5, 1600, 2, ("bool_mask",)),
        ((4, 1), 16, 1537, 1, ("causal", "window")),
        ((13, 1), 5, 800, 2, ("float_mask", "past")),
        ((4, 2), 300, 300, 1, ("causal",)),
        ((2, 1), 530, 120, 1, ("offset",)),
        ((3, 3), 150, 400, 2, ("lengths", "causal", "window", "sinks")),
    )
]
