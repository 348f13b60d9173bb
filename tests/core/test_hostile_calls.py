"""Hostile calls: an error that names the argument, or the right answer; nothing else is written, nothing crashes."""

import contextlib
import threading

import numpy as np
import pytest

import gqa
from compare import assert_same_bits
from hostile import ROWS, SAME, good


def test_there_are_many():
    assert len(ROWS) >= 150
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_hostile_call(row):
    arguments = good()
    before = {name: x.copy() for name, x in arguments.items()}
    hostile = row.change(arguments)
    if row.outcome is SAME:
        given = {**arguments, "out": None, **hostile}
        plain = {**arguments, "out": None, **row.plain}
        for name, x in hostile.items():
            if name in ("causal", "kv_lengths") or name in row.plain or not isinstance(x, np.ndarray):
                continue
            if name in arguments and x.shape == arguments[name].shape:
                plain[name] = np.array(x, np.float32)
        if "query_offset" in hostile:  # an edge that lies far off is none, or leaves no key
            plain |= {"causal": False}
        assert_same_bits(np.asarray(gqa.attention(**given)), np.asarray(gqa.attention(**plain)))
    else:
        with pytest.raises(row.error, match=row.outcome):
            gqa.attention(**{**arguments, **hostile})
    for name, x in arguments.items():
        assert_same_bits(np.asarray(x), before[name])


def test_contents_that_another_thread_changes():
    """Finite numbers stay finite, whichever of them a call sees; lengths that do not fit are an error."""
    arguments = good() | {"out": None}
    del arguments["mask"]
    lengths = np.array([20, 20])
    stop = threading.Event()

    def change():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            arguments["q"][...] = rng.standard_normal(arguments["q"].shape)
            arguments["k"][...] = rng.standard_normal(arguments["k"].shape)
            lengths[...] = rng.choice([0, 5, 20, 21, -1, 2**62], 2)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        refused = computed = 0
        while min(refused, computed) < 20:
            with contextlib.suppress(ValueError):
                out = gqa.attention(**arguments, kv_lengths=lengths, num_threads=2)
                assert np.isfinite(out).all()
                computed += 1
                continue
            refused += 1
    finally:
        stop.set()
        thread.join()
