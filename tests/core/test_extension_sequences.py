"""The extension's other functions driven directly: sequences of runs, rotary embedding. They raise and do not crash."""

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from compare import assert_same_bits
from extension_call import GOOD, zeros
from gqa import _core
from gqa.options import Options

Q, K, V = GOOD["q"], GOOD["k"], GOOD["v"]
SEQUENCE = {
    "batch": 0, "token": 0, "queries": 3, "padding": 0, "origin": 0, "offset": 3, "keys": 6, "mask_batch": 0,
    "mask_key": 0, "runs": 1,
}  # fmt: skip
RUN = {"store": 0, "batch": 0, "token": 0, "count": 6}
EXTREMES = (-(2**63), -(2**62), -1, 7, 2**31, 2**62, 2**63 - 1)


def table(rows, columns):
    return np.array([list(row.values()) for row in rows], np.int64).reshape(-1, columns)


def attend(**change):
    """One sequence of 3 queries over the 6 keys of one store, but for what is changed."""
    arguments = {
        "q": Q, "stores": (("k", K, "v", V),), "sequences": table([SEQUENCE], 10), "runs": table([RUN], 4),
        "mask_shape": (2, 3, 6), "out": zeros(2, 4, 3, 5),
    } | change  # fmt: skip
    tables = tuple(arguments.pop(name) for name in ("sequences", "runs", "mask_shape"))
    return _core.attend_sequences(arguments.pop("q"), arguments.pop("stores"), tables, Options(**arguments))


def attend_sequence(change, **more):
    return attend(sequences=table([SEQUENCE | change], 10), **more)


def test_good_sequences():
    assert attend().shape == (2, 4, 3, 5)
    assert attend(sequences=table([], 10), runs=table([], 4)).shape == (2, 4, 3, 5)


@pytest.mark.parametrize(
    "name", [name for name in SEQUENCE if name not in ("origin", "offset", "mask_batch", "mask_key")]
)
def test_sequences_out_of_bounds(name):
    for value in EXTREMES:
        with pytest.raises(ValueError, match=r"\w"):
            attend_sequence({name: value})


def test_origins():
    for origin in (0, 5, 2**31, 2**60 - 6):
        assert_same_bits(attend_sequence({"origin": origin}), attend())
    for origin in (-(2**63), -1, 2**60 - 5, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match="key"):
            attend_sequence({"origin": origin})


def test_more_keys_than_can_be_counted():
    """Eight runs over all of a store whose tokens are one token in memory."""
    k = as_strided(np.zeros(1, np.float32), (1, 1, 2**60, 1), (0, 0, 0, 4), writeable=False)
    runs = table([{"store": 0, "batch": 0, "token": 0, "count": 2**60}] * 8, 4)
    with pytest.raises(ValueError, match="keys"):
        attend_sequence({"runs": 8}, q=zeros(1, 1, 3, 1), stores=(("k", k, "v", k),), runs=runs, out=None)


@pytest.mark.parametrize("name", RUN)
def test_runs_out_of_bounds(name):
    for value in EXTREMES:
        with pytest.raises(ValueError, match=r"\w"):
            attend(runs=table([RUN | {name: value}], 4))


@pytest.mark.parametrize("name", ["mask_batch", "mask_key"])
def test_masks_out_of_bounds(name):
    mask = np.zeros((2, 1, 3, 6), bool)
    assert attend(mask=mask).shape == (2, 4, 3, 5)
    for value in EXTREMES:
        with pytest.raises(ValueError, match=r"\w"):
            attend_sequence({name: value}, mask=mask)
    for shape in itertools.product((-1, 0, 2**62), repeat=3):
        with pytest.raises((ValueError, TypeError)):
            attend(mask=mask, mask_shape=shape)


def test_offsets_of_any_size():
    for value in EXTREMES:
        out = attend_sequence({"offset": value}, causal=True, window=(2**62, 2**62))
        assert out.shape == (2, 4, 3, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"stores": None}, {"stores": ()}, {"stores": [("k", K, "v", V)]}, {"stores": (K,)}, {"stores": (("k", K),)},
        {"stores": (("k", K, "v", Q),)}, {"stores": (("k", K, "v", V), ("k", K[:, :1], "v", V[:, :1]))},
        {"stores": ((K, "k", V, "v"),)}, {"stores": (("k", None, "v", V),)}, {"sequences": None},
        {"sequences": zeros(1, 10)},
        {"sequences": zeros(1, 9, dtype=int)}, {"sequences": zeros(10, 2, dtype=int).T}, {"runs": zeros(4, dtype=int)},
        {"sequences": zeros(10, 10, dtype=int)[:, ::-1]}, {"runs": zeros(4, 4, dtype=np.int32)}, {"mask_shape": None},
        {"mask_shape": (1, 2)}, {"q": None}, {"out": zeros(2, 4, 3, 6)}, {"mask": zeros(7)},
    ],
    ids=",".join,
)  # fmt: skip
def test_wrong_tables(change):
    with pytest.raises((TypeError, ValueError)):
        attend(**change)


def test_rotary_refuses():
    x, table, places = zeros(2, 3, 4, 8), zeros(5, 4), zeros(2, 4, dtype=np.int64)
    good = {"x": x, "cos": table, "sin": table, "positions": places}
    good |= {"interleaved": False, "layout": "bhsd", "threads": None}
    for positions in (places, places[:1], places + 4, 0, 1):
        assert _core.rotary(*(good | {"positions": positions}).values()).shape == x.shape
    changes = [
        {"x": None}, {"x": x[..., ::-1]}, {"x": x[0]}, {"x": x.astype(int)}, {"cos": None}, {"sin": None},
        {"sin": zeros(5, 3)}, {"sin": zeros(4, 4)}, {"sin": table.astype(int)}, {"sin": table[0]},
        {"sin": zeros(5, 8)[:, ::2]}, {"cos": zeros(5, 5), "sin": zeros(5, 5)}, {"interleaved": 1}, {"layout": "x"},
        {"positions": None}, {"positions": -1}, {"positions": 2}, {"positions": 2**70}, {"positions": 1.0},
        {"positions": places.astype(np.int32)}, {"positions": places[0]}, {"positions": zeros(4, 2, dtype=np.int64).T},
        {"positions": zeros(3, 4, dtype=np.int64)}, {"positions": places + 5}, {"positions": places - 1},
        {"threads": 0}, {"threads": 1.0}, {"threads": True},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises((TypeError, ValueError)):
            _core.rotary(*(good | change).values())


def test_merge_states_refuses():
    x, lse = zeros(2, 3), zeros(2)
    good = {"outs": (x, x), "lses": (lse, lse), "out": zeros(2, 3), "lse": zeros(2), "threads": None}
    _core.merge_states(*good.values())
    read_only, line = zeros(2, 3), zeros(8)
    read_only.flags.writeable = False
    changes = [
        {"outs": ()}, {"outs": (), "lses": ()}, {"outs": (x,)}, {"outs": (x, None)}, {"outs": (x, zeros(2, 4))},
        {"outs": (x, zeros(3, 3))}, {"outs": (x, zeros(3))}, {"outs": (x, x.astype(int))}, {"lses": (lse, zeros(3))},
        {"lses": (lse, lse.astype(np.float16))}, {"lses": (lse, zeros(2, 1))}, {"out": None}, {"out": zeros(2, 4)},
        {"out": read_only}, {"out": x}, {"out": x[::-1]}, {"out": np.zeros(())}, {"out": zeros(2, 3, dtype=int)},
        {"lse": None}, {"lse": zeros(3)}, {"lse": lse}, {"lse": zeros(2, dtype=int)}, {"threads": 0},
        {"out": line[:6].reshape(2, 3), "lse": line[5:7]},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises((TypeError, ValueError)):
            _core.merge_states(*(good | change).values())
    assert not x.any()
    assert not lse.any()
