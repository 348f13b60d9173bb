"""A sequence's result is the same to the last bit for any number of threads, and whatever else is in the batch."""

import numpy as np
import pytest

import cases
import gqa
from compare import assert_same_bits, naming

PER_BATCH = ("q", "k", "v", "past_key", "past_value", "kv_lengths", "query_offset")
# Units of work (KV heads times blocks of rows) fewer than threads, so that splits are dealt out; and many.
CASES = [
    *cases.LONG,
    *(
        cases.Case(heads=heads, queries=queries, keys=keys, head_dim=64, v_head_dim=80, options=options)
        for heads, queries, keys in (((4, 1), 1, 3000), ((4, 1), 5, 1700), ((8, 2), 8, 1600), ((12, 1), 130, 250))
        for options in (
            (), ("causal", "past"), ("causal", "window"), ("bool_mask",), ("float_mask", "softcap"),
            ("lengths", "offset", "sinks"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads(isa, dtype, case):
    arguments = case.arguments(dtype)
    out, lse = gqa.attention(**arguments, return_lse=True, num_threads=1)
    for threads in (2, 5):
        with naming(f"{threads} threads"):
            out1, lse1 = gqa.attention(**arguments, return_lse=True, num_threads=threads)
            assert_same_bits(out1, out)
            assert_same_bits(lse1, lse)


def entry(arguments, b):
    """The arguments of batch entry b alone, as a batch of one."""
    alone = {name: x[b : b + 1] if name in PER_BATCH else x for name, x in arguments.items()}
    mask = arguments.get("mask")
    return alone | ({"mask": mask[b : b + 1]} if mask is not None and mask.ndim == 4 and len(mask) > 1 else {})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batches(isa, dtype, case):
    arguments = case.arguments(dtype)
    out, lse = gqa.attention(**arguments, return_lse=True, num_threads=3)
    for b in range(case.batch):
        with naming(f"entry {b}"):
            out1, lse1 = gqa.attention(**entry(arguments, b), return_lse=True, num_threads=2)
            assert_same_bits(out1, out[b : b + 1])
            assert_same_bits(lse1, lse[b : b + 1])


@pytest.mark.parametrize("queries", [1, 6, 70])
def test_a_batch_of_unlike_lengths(isa, dtype, queries, rng):
    """Each entry equals a call over its own keys alone, without the padding."""
    lengths = [0, 1, 13, 96, 97, 767, 769, 1600, 2000]
    q = rng.standard_normal((len(lengths), 4, queries, 32)).astype(dtype)
    k, v = rng.standard_normal((2, len(lengths), 2, 2000, 32)).astype(dtype)
    for options in ({}, {"causal": True}, {"window": (100, 3)}):
        out, lse = gqa.attention(q, k, v, kv_lengths=lengths, return_lse=True, num_threads=3, **options)
        for b, length in enumerate(lengths):
            one = slice(b, b + 1)
            alone, alone_lse = gqa.attention(q[one], k[one, :, :length], v[one, :, :length], return_lse=True, **options)
            assert_same_bits(alone, out[one])
            assert_same_bits(alone_lse, lse[one])


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_heads(isa, dtype, case):
    """A KV head's queries do not depend on the other heads."""
    arguments = {name: x for name, x in case.arguments(dtype).items() if name not in ("mask", "sinks")}
    out = gqa.attention(**arguments, num_threads=3)
    group = case.heads[0] // case.heads[1]
    for h in range(case.heads[1]):
        heads = {"q": slice(h * group, (h + 1) * group)} | {name: slice(h, h + 1) for name in cases.TENSORS[1:]}
        alone = {name: x[:, heads[name]] if name in heads else x for name, x in arguments.items()}
        with naming(f"head {h}"):
            assert_same_bits(gqa.attention(**alone), np.ascontiguousarray(out[:, heads["q"]]))


@pytest.mark.parametrize("case", cases.LONG, ids=str)
def test_repeated_calls(isa, dtype, case):
    arguments = case.arguments(dtype)
    first = gqa.attention(**arguments, num_threads=3)
    for _ in range(3):
        assert_same_bits(gqa.attention(**arguments, num_threads=3), first)
