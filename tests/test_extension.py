"""The extension driven directly: whatever its arguments, it raises and does not crash."""

import itertools

import numpy as np
import pytest

from child import output_of
from gqa import _core

NAMES = ("q", "k", "v", "past_key", "past_value", "mask", "causal", "query_offset", "window", "kv_lengths", "scale",
         "softcap", "sinks", "layout", "out", "return_lse", "num_threads")  # fmt: skip


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


GOOD = dict.fromkeys(NAMES) | {
    "q": zeros(2, 4, 3, 8), "k": zeros(2, 2, 6, 8), "v": zeros(2, 2, 6, 5), "causal": False, "softcap": 0.0,
    "layout": "bhsd", "return_lse": False,
}  # fmt: skip


def attention(**change):
    arguments = GOOD | change
    assert len(arguments) == len(NAMES)
    return _core.attention(*arguments.values())


def test_a_good_call():
    assert attention().shape == (2, 4, 3, 5)
    out, lse = attention(return_lse=True)
    assert lse.shape == (2, 4, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"q": zeros(2, 4, 3)}, {"q": zeros(2, 4, 3, 8, 1)}, {"q": zeros(2, 4, 3, 16)[..., ::2]}, {"q": zeros(2, 5, 3, 8)},
        {"q": zeros(2, 4, 3, 7)}, {"q": zeros(3, 4, 3, 8)}, {"q": zeros(2, 4, 3, 65537), "k": zeros(2, 2, 6, 65537)},
        {"q": zeros(2, 4, 3, 8)[..., ::-1]}, {"k": zeros(2, 2, 6, 8)[..., ::-1]},
        {"k": zeros(2, 2, 5, 8)}, {"k": zeros(2, 1, 6, 8)}, {"k": zeros(2, 3, 6, 8)}, {"k": zeros(2, 0, 6, 8)}, {"k": zeros(1, 2, 6, 8)},
        {"k": zeros(2, 2, 6, 7)}, {"k": zeros(2, 2, 6)}, {"v": zeros(2, 2, 7, 5)}, {"v": zeros(2, 1, 6, 5)}, {"v": zeros(1, 2, 6, 5)},
        {"v": zeros(2, 2, 6, 65537)}, {"k": zeros(1, 2, 6, 8), "v": zeros(1, 2, 6, 5)}, {"k": None, "v": None},
        {"past_key": zeros(2, 2, 1, 8), "past_value": zeros(2, 2, 1, 6)}, {"past_key": zeros(2, 2, 1, 9), "past_value": zeros(2, 2, 1, 5)},
        {"past_key": zeros(2, 4, 1, 8), "past_value": zeros(2, 4, 1, 5)}, {"past_key": zeros(1, 2, 1, 8), "past_value": zeros(1, 2, 1, 5)},
        {"mask": zeros(3, 5)}, {"mask": zeros(4, 6)}, {"mask": zeros(2, 3, 6)}, {"mask": zeros(1, 1, 1, 3, 6)}, {"mask": zeros(0, 6)},
        {"query_offset": zeros(3, dtype=int)}, {"query_offset": zeros(1, 2, dtype=int)}, {"query_offset": zeros(dtype=int)},
        {"kv_lengths": zeros(1, dtype=int)}, {"kv_lengths": zeros(2, 2, dtype=int)},
        {"kv_lengths": np.array([0, 7])}, {"kv_lengths": np.array([-1, 6])}, {"kv_lengths": np.array([2**63 - 1, 0])},
        {"kv_lengths": np.array([0, -(2**31)], np.int32)},
        {"window": (-1, 0)}, {"window": (0, -(10**30))}, {"scale": np.nan}, {"scale": np.inf}, {"softcap": -1.0}, {"softcap": np.nan},
        {"softcap": np.inf}, {"sinks": zeros(3)}, {"sinks": zeros(5, dtype=float)}, {"sinks": zeros(4, 1)}, {"layout": "sbhd"},
        {"layout": ""}, {"num_threads": 0}, {"num_threads": -(10**30)},
        {"out": zeros(2, 4, 3, 6)}, {"out": zeros(2, 3, 4, 5)}, {"out": zeros(4, 3, 5)}, {"out": np.broadcast_to(zeros(5), (2, 4, 3, 5))},
        {"out": np.lib.stride_tricks.as_strided(zeros(200), (2, 4, 3, 5), (0, 0, 0, 4))},
        {"out": np.lib.stride_tricks.as_strided(zeros(200), (2, 4, 3, 5), (240, 60, 16, 4))},
    ],
    ids=lambda change: ", ".join(f"{name}: {getattr(x, 'shape', x)}" for name, x in change.items()),
)  # fmt: skip
def test_wrong_values_and_shapes(change):
    with pytest.raises(ValueError, match="."):
        attention(**change)


KINDS = [
    3, -1.5, True, "text", b"bytes", [], (), {}, object(), type, lambda: None, zeros(2, 4, 3, 8, dtype=int), zeros(2, 4, 3, 8, dtype=object),
    zeros(2, 4, 3, 8, dtype=">f4"), zeros(2, 4, 3, 8, dtype=complex), zeros(2, 4, 3, 8, dtype="U1"), zeros(2, 4, 3, 8, dtype="M8[s]"),
    np.zeros((2, 4, 3, 8), [("x", "f4")]), zeros(2, 4, 3, 8, dtype=np.longdouble), zeros(2, 2, 6, 8, dtype=np.int8),
]  # fmt: skip
FITTING = {  # what is no wrong kind
    "causal": (bool,), "return_lse": (bool,), "num_threads": (int,), "query_offset": (int,), "layout": (str,), "scale": (int, float),
    "softcap": (int, float),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_wrong_kinds(name):
    for kind in KINDS:
        if type(kind) in FITTING.get(name, ()):
            continue
        with pytest.raises((TypeError, ValueError)):
            attention(**{name: kind})


@pytest.mark.parametrize("name", ["q", "softcap", "layout", "causal", "return_lse"])
def test_missing_arguments(name):
    with pytest.raises(TypeError):
        attention(**{name: None})
    with pytest.raises(TypeError):
        _core.attention(GOOD["q"])
    with pytest.raises(TypeError):
        _core.attention()


class Quantised:
    """What the extension takes for a quantised array; not checked by gqa.Quantized."""

    def __init__(self, data, scale):
        self.data, self.scale = data, scale


@pytest.mark.parametrize(
    ("data", "scale"),
    [
        (zeros(2, 2, 6, 8, dtype=np.int8), zeros(2, 2, 5)),
        (zeros(2, 2, 6, 8, dtype=np.int8), zeros(2, 2, 6, 8)),
        (zeros(2, 2, 6, 8, dtype=np.int8), zeros(2, 2, 6, dtype=np.float64)),
        (zeros(2, 2, 6, 8, dtype=np.int8), zeros(2, 2, 6, dtype=np.float16)),
        (zeros(2, 2, 6, 8, dtype=np.int8), zeros()),
        (zeros(2, 2, 6, 8, dtype=np.int8), None),
        (zeros(2, 2, 6, 8, dtype=np.uint8), zeros(2, 2, 6)),
        (zeros(2, 2, 6, 8), zeros(2, 2, 6)),
        (zeros(2, 2, 6, 16, dtype=np.int8)[..., ::2], zeros(2, 2, 6)),
        (zeros(2, 2, 6, dtype=np.int8), zeros(2, 2)),
        (None, zeros(2, 2, 6)),
        (3, 4),
    ],
)
def test_wrong_scales(data, scale):
    for name in ("k", "v"):
        with pytest.raises((TypeError, ValueError)):
            attention(**{name: Quantised(data, scale)})
    with pytest.raises((TypeError, ValueError)):
        attention(q=Quantised(data, scale))


class Broken:
    def __getattr__(self, name):
        raise RuntimeError("broken")


def test_errors_of_arguments_come_through():
    class Index:
        def __index__(self):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        attention(num_threads=Index())
    with pytest.raises((RuntimeError, TypeError)):
        attention(k=Broken())


def test_strange_sizes_do_not_crash():
    """Every combination of zero, one and more in each dimension, with rows in the lanes and channels in the lanes."""
    done = output_of(
        """
        import itertools
        import numpy as np
        from gqa import _core

        for batch, kv_heads, group, queries, keys, head_dim, v_head_dim in itertools.product(
            (0, 1, 2), (0, 1), (0, 1, 20), (0, 1), (0, 1, 100), (0, 1, 9), (0, 1, 9)
        ):
            for dtype in (np.float32, np.float64, np.float16):
                q = np.zeros((batch, kv_heads * group, queries, head_dim), dtype)
                k = np.zeros((batch, kv_heads, keys, head_dim), dtype)
                v = np.ones((batch, kv_heads, keys, v_head_dim), dtype)
                try:
                    out, lse = _core.attention(q, k, v, None, None, None, False, None, None, None, None, 0.0, None, "bhsd", None, True, 2)
                except ValueError:
                    assert kv_heads == 0
                    continue
                assert out.shape == (*q.shape[:3], v_head_dim)
                assert (out == (keys > 0)).all()
        print("done")
        """
    )
    assert done == "done"


def test_memory_that_cannot_be_had():
    """A workspace of many large rows: MemoryError or a result, never a crash."""
    done = output_of(
        """
        import resource
        import numpy as np
        from gqa import _core

        q, k = np.zeros((1, 1, 64, 65536), np.float32), np.zeros((1, 1, 4, 65536), np.float32)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, used + 2**25))
        try:
            _core.attention(q, k, k, None, None, None, False, None, None, None, None, 0.0, None, "bhsd", None, False, 1)
        except MemoryError:
            print("done")
        """
    )
    assert done in ("", "done")


# ---- sequences of runs ----------------------------------------------------------------------------------------

SEQUENCE = dict(batch=0, token=0, queries=3, padding=0, offset=3, keys=6, mask_batch=0, mask_key=0, runs=1)
RUN = dict(store=0, batch=0, token=0, count=6)


def attend(sequences=(SEQUENCE,), runs=(RUN,), **change):
    def table(rows, columns):
        return np.array([list(row.values()) for row in rows], np.int64).reshape(-1, columns)

    arguments = {
        "q": GOOD["q"], "stores": [(GOOD["k"], GOOD["v"])], 
        "sequences": table(sequences, 9) if isinstance(sequences, tuple) else sequences,
        "runs": table(runs, 4) if isinstance(runs, tuple) else runs,
        "mask": None, "mask_shape": (2, 3, 6), "causal": False, "window": None, "scale": None, "softcap": 0.0, "sinks": None,
        "layout": "bhsd", "out": zeros(2, 4, 3, 5), "return_lse": False, "num_threads": None,
    } | change  # fmt: skip
    return _core.attend_sequences(*arguments.values())


def test_good_sequences():
    assert attend().shape == (2, 4, 3, 5)
    assert attend(sequences=(), runs=()).shape == (2, 4, 3, 5)


EXTREMES = (-(2**63), -(2**62), -1, 7, 2**31, 2**62, 2**63 - 1)


@pytest.mark.parametrize("name", [name for name in SEQUENCE if name not in ("offset", "mask_batch", "mask_key")])
def test_sequences_out_of_bounds(name):
    for value in EXTREMES:
        with pytest.raises(ValueError, match="."):
            attend(sequences=(SEQUENCE | {name: value},))


@pytest.mark.parametrize("name", RUN)
def test_runs_out_of_bounds(name):
    for value in EXTREMES:
        with pytest.raises(ValueError, match="."):
            attend(runs=(RUN | {name: value},))


@pytest.mark.parametrize("name", ["mask_batch", "mask_key"])
def test_masks_out_of_bounds(name):
    mask = np.zeros((2, 1, 3, 6), bool)
    assert attend(mask=mask).shape == (2, 4, 3, 5)
    for value in EXTREMES:
        with pytest.raises(ValueError, match="."):
            attend(mask=mask, sequences=(SEQUENCE | {name: value},))
    for shape in itertools.product((-1, 0, 2**62), repeat=3):
        with pytest.raises((ValueError, TypeError)):
            attend(mask=mask, mask_shape=shape)


def test_offsets_of_any_size():
    for value in EXTREMES:
        assert attend(sequences=(SEQUENCE | {"offset": value},), causal=True, window=(2**62, 2**62)).shape == (
            2,
            4,
            3,
            5,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"stores": []}, {"stores": [GOOD["k"]]}, {"stores": [(GOOD["k"],)]}, {"stores": None}, {"stores": [(GOOD["k"], GOOD["q"])]},
        {"stores": [(GOOD["k"], GOOD["v"]), (GOOD["k"][:, :1], GOOD["v"][:, :1])]}, {"sequences": None},
        {"sequences": zeros(1, 9)}, {"sequences": zeros(1, 8, dtype=int)}, {"sequences": zeros(9, 2, dtype=int).T}, {"runs": zeros(4, dtype=int)},
        {"sequences": zeros(9, 9, dtype=int)[:, ::-1]}, {"runs": zeros(4, 4, dtype=np.int32)}, {"mask_shape": None}, {"mask_shape": (1, 2)},
        {"q": None}, {"out": zeros(2, 4, 3, 6)}, {"mask": zeros(7)},
    ],
    ids=lambda change: ", ".join(change),
)  # fmt: skip
def test_wrong_tables(change):
    with pytest.raises((TypeError, ValueError)):
        attend(**change)


# ---- the rest -------------------------------------------------------------------------------------------------


def test_rotary_refuses():
    x, table = zeros(2, 3, 4, 8), zeros(1, 4, 4)
    assert _core.rotary(x, table, table, False, "bhsd").shape == x.shape
    wrong = [
        (None, table, table, False, "bhsd"), (x, None, table, False, "bhsd"), (x, table, zeros(1, 4, 3), False, "bhsd"),
        (x, zeros(1, 4, 5), zeros(1, 4, 5), False, "bhsd"), (x, zeros(1, 3, 4), zeros(1, 3, 4), False, "bhsd"),
        (x, zeros(3, 4, 4), zeros(3, 4, 4), False, "bhsd"), (x, table.astype(float), table.astype(float), False, "bhsd"),
        (x, table, table, 1, "bhsd"), (x, table, table, False, "x"), (x[..., ::-1], table, table, False, "bhsd"),
        (x, table, zeros(2, 4, 4), False, "bhsd"), (x, zeros(1, 4, 8)[..., ::2], zeros(1, 4, 8)[..., ::2], False, "bhsd"),
        (x[0], table, table, False, "bhsd"), (x.astype(int), table, table, False, "bhsd"),
    ]  # fmt: skip
    for arguments in wrong:
        with pytest.raises((TypeError, ValueError)):
            _core.rotary(*arguments)


@pytest.mark.parametrize("isa", ["", "sse9", "AVX2", "avx2 ", "a" * 10000])
def test_unknown_instruction_sets(isa):
    before = _core.isa()
    with pytest.raises(ValueError, match="available on this machine: .*baseline"):
        _core.use_isa(isa)
    assert _core.isa() == before
