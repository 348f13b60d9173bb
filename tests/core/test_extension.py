"""The extension driven directly: whatever its arguments, it raises and does not crash."""

import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gqa
from child import output_of
from extension_call import GOOD, NAMES, attention, zeros
from gqa import _core, refusals
from gqa.options import Options


def test_a_good_call():
    assert attention().shape == (2, 4, 3, 5)
    assert attention(return_lse=True)[1].shape == (2, 4, 3)


INT8 = zeros(2, 2, 6, 8, dtype=np.int8)
WRONG = {
    "q": [
        zeros(2, 4, 3), zeros(2, 4, 3, 8, 1), zeros(*[1] * 9), zeros(*[1] * 30),
        zeros(2, 5, 3, 8), zeros(2, 4, 3, 7), zeros(3, 4, 3, 8),
    ],
    "k": [
        zeros(2, 2, 5, 8), zeros(2, 1, 6, 8), zeros(2, 3, 6, 8), zeros(2, 0, 6, 8),
        zeros(1, 2, 6, 8), zeros(2, 2, 6, 7), zeros(2, 2, 6),
    ],
    "v": [zeros(2, 2, 7, 5), zeros(2, 1, 6, 5), zeros(1, 2, 6, 5), zeros(2, 2, 6, 65537)],
    "mask": [zeros(3, 5), zeros(4, 6), zeros(2, 3, 6), zeros(1, 1, 1, 3, 6), zeros(0, 6)],
    "query_offset": [zeros(3, dtype=int), zeros(1, 2, dtype=int)],
    "kv_lengths": [
        zeros(1, dtype=int), zeros(2, 2, dtype=int), np.array([0, 7]), np.array([-1, 6]), np.array([2**63 - 1, 0]),
        np.array([0, -(2**31)], np.int32),
    ],
    "window": [(-1, 0), (0, -(10**30))],
    "scale": [np.nan, np.inf],
    "softcap": [-1.0, np.nan, np.inf],
    "sinks": [zeros(3), zeros(5, dtype=float), zeros(4, 1)],
    "layout": ["sbhd", ""],
    "num_threads": [0, -(10**30)],
    "out": [
        zeros(2, 4, 3, 6), zeros(2, 3, 4, 5), zeros(4, 3, 5), np.broadcast_to(zeros(5), (2, 4, 3, 5)),
        as_strided(zeros(200), (2, 4, 3, 5), (0, 0, 0, 4)), as_strided(zeros(200), (2, 4, 3, 5), (240, 60, 16, 4)),
    ],
}  # fmt: skip
WRONG_TOGETHER = [
    {"q": zeros(2, 4, 3, 65537), "k": zeros(2, 2, 6, 65537)},
    {"k": zeros(1, 2, 6, 8), "v": zeros(1, 2, 6, 5)},
    {"k": None, "v": None},
    *(
        {"past_key": zeros(batch, heads, 1, head_dim), "past_value": zeros(batch, heads, 1, v_head_dim)}
        for batch, heads, head_dim, v_head_dim in ((2, 2, 8, 6), (2, 2, 9, 5), (2, 4, 8, 5), (1, 2, 8, 5))
    ),
]


def describe(change):
    return ", ".join(f"{name}: {getattr(x, 'shape', x)}" for name, x in change.items())


@pytest.mark.parametrize(
    "change", [{name: x} for name, values in WRONG.items() for x in values] + WRONG_TOGETHER, ids=describe
)
def test_wrong_values_and_shapes(change):
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        attention(**change)


KINDS = [
    3, -1.5, True, "text", b"bytes", [], (), {}, object(), type, lambda: None, INT8,
    *(zeros(2, 4, 3, 8, dtype=t) for t in (int, object, ">f4", complex, "U1", "M8[s]", np.longdouble, [("x", "f4")])),
]  # fmt: skip
FITTING = {  # what is no wrong kind
    "causal": (bool,), "return_lse": (bool,), "num_threads": (int,), "query_offset": (int,), "layout": (str,),
    "scale": (int, float), "softcap": (int, float),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_wrong_kinds(name):
    for kind in KINDS:
        if type(kind) in FITTING.get(name, ()):
            continue
        with pytest.raises((TypeError, ValueError)):
            attention(**{name: kind})


def test_every_rule_has_a_sentence():
    assert sorted(refusals.SENTENCES) == sorted(_core.RULES)


def test_options_of_attention_come_in_their_order(monkeypatch):
    """gqa.attention hands over a plain tuple."""
    given = {name: object() for name in Options._fields if name != "program"}  # which score_mod and mask_mod become
    seen = []
    monkeypatch.setattr(_core, "attention", lambda tensors, offset, lengths, options: seen.append(options))
    gqa.attention(1, **given)
    assert seen == [Options(**given)]


def test_missing_arguments():
    for name in ("q", "softcap", "layout", "causal", "return_lse"):
        with pytest.raises(TypeError, match=name):
            attention(**{name: None})
    for arguments in ((), (GOOD["q"],)):
        with pytest.raises(TypeError, match="takes 4 arguments"):
            _core.attention(*arguments)


def unchecked(data, scale):
    """A gqa.Quantized that has not checked itself."""
    quantized = object.__new__(gqa.Quantized)
    for name, x in (("data", data), ("scale", scale)):
        object.__setattr__(quantized, name, x)
    return quantized


@pytest.mark.parametrize(
    ("data", "scale"),
    [
        (INT8, zeros(2, 2, 5)),
        (INT8, zeros(2, 2, 6, 8)),
        (INT8, zeros(2, 2, 6, dtype=np.float64)),
        (INT8, zeros(2, 2, 6, dtype=np.float16)),
        (INT8, zeros()),
        (INT8, None),
        (zeros(2, 2, 6, 8, dtype=np.uint8), zeros(2, 2, 6)),
        (zeros(2, 2, 6, 8), zeros(2, 2, 6)),
        (INT8, zeros(2, 2, 6).astype(">f4")),
        (zeros(2, 2, 6, dtype=np.int8), zeros(2, 2)),
        (None, zeros(2, 2, 6)),
        (3, 4),
    ],
)
def test_wrong_scales(data, scale):
    for name in ("q", "k", "v"):
        with pytest.raises((TypeError, ValueError)):
            attention(**{name: unchecked(data, scale)})


def test_errors_of_arguments_come_through():
    class Index:
        def __index__(self):
            raise RuntimeError("broken")

    class Data:
        def __getattr__(self, name):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        attention(num_threads=Index())
    with pytest.raises((RuntimeError, TypeError)):
        attention(k=Data())


def test_strange_sizes_do_not_crash():
    """Every combination of zero, one and more in each dimension, with rows in the lanes and channels in the lanes."""
    done = output_of(
        """
        import itertools
        import numpy as np
        from extension_call import attention

        for batch, kv_heads, group, queries, keys, head_dim, v_head_dim in itertools.product(
            (0, 1, 2), (0, 1), (0, 1, 30), (0, 1), (0, 1, 100), (0, 1, 9), (0, 1, 9)
        ):
            for dtype in (np.float32, np.float64, np.float16):
                q = np.zeros((batch, kv_heads * group, queries, head_dim), dtype)
                k = np.zeros((batch, kv_heads, keys, head_dim), dtype)
                v = np.ones((batch, kv_heads, keys, v_head_dim), dtype)
                try:
                    out, _ = attention(q=q, k=k, v=v, return_lse=True, num_threads=2)
                except ValueError:
                    assert kv_heads == 0
                    continue
                assert out.shape == (*q.shape[:3], v_head_dim)
                assert (out == (keys > 0)).all()
        print("done")
        """
    )
    assert done == "done"


# A child that may take so many bytes more than it has.
LIMITED = """
import resource
import numpy as np
from numpy.lib.stride_tricks import as_strided
from extension_call import attention

def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
"""
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_linux
def test_sizes_near_the_largest_integer():
    """Views of stride 0: what can be computed is, and the rest is a MemoryError."""
    done = output_of(
        f"""{LIMITED}
def view(*shape, dtype=np.float16):
    return as_strided(np.ones(1, dtype), shape, (0,) * len(shape))

limit(2**28)
k, q, five = view(1, 1, 2**58, 1), view(1, 1, 30, 1), np.array([5])
both = dict(k=k, v=k, past_key=k, past_value=k)
for options in (
    dict(kv_lengths=five), dict(causal=True, query_offset=3), dict(window=(3, 0)), dict(window=(3, 2**62)),
    dict(kv_lengths=five, mask=view(1, 2**59, dtype=bool)),
):
    assert (attention(q=q, **both, **options) == 1).all()
for shape in ((1, 2**60, 0, 1), (1, 0, 2**60, 1), (0, 1, 2**60, 1)):
    k = view(shape[0], 1, 2, 1)
    assert attention(q=view(*shape), k=k, v=k).shape == shape
for shape in ((1, 1, 2**60, 1), (1, 2**60, 1, 1), (2**60, 1, 1, 1)):
    k = view(shape[0], 1, 2, 1)
    try:
        attention(q=view(*shape), k=k, v=k)
    except MemoryError:
        print("refused")
"""
    )
    assert done.split() == ["refused"] * 3


def test_spans_that_overlap():
    x = zeros(4, 6)
    inside, reversed_rows, columns = x[1:2], x[::-1], x[:, 4:]
    assert _core.sharing_memory(x, (None, zeros(4, 6), inside, reversed_rows, columns)) == [2, 3, 4]
    assert _core.sharing_memory(x[:2], (x[2:], x[1:3], x[:2, :0])) == [1]
    assert _core.sharing_memory(x[:, 1::2], (x[:, ::2], x[::-1, 1:3], x[1:2, ::-2], x[..., None].view(np.int8))) == [
        1,
        2,
        3,
    ]
    assert _core.sharing_memory(x, ()) == []
    for one, others in ((x, (1,)), (x, [x]), ([1.0], (x,)), (None, (x,))):
        with pytest.raises(TypeError):
            _core.sharing_memory(one, others)


def test_shared_memory_is_found_exactly():
    """Random views of one buffer, against NumPy's own search."""
    rng = np.random.default_rng(0)
    memory = np.zeros(600, np.int8)

    def view():
        axes = rng.integers(1, 5)
        shape = rng.integers(1, 5, axes)
        strides = rng.choice([-24, -12, -7, -4, 0, 1, 2, 3, 4, 6, 8, 12, 16, 40], axes)
        dtype = rng.choice(["i1", "i2", "f4"])
        return as_strided(memory[200 + rng.integers(0, 60) :][:8].view(dtype), shape, strides)

    found = 0
    for _ in range(4000):
        x, y = view(), view()
        expected = np.shares_memory(x, y)
        assert _core.sharing_memory(x, (y,)) == [0] * expected, (x.__array_interface__, y.__array_interface__)
        found += expected
    assert 500 < found < 3500


@needs_linux
def test_memory_that_cannot_be_had():
    """A workspace of many large rows: MemoryError or a result, never a crash."""
    done = output_of(
        f"""{LIMITED}
q, k = np.zeros((1, 1, 64, 65536), np.float32), np.zeros((1, 1, 4, 65536), np.float32)
limit(2**25)
try:
    attention(q=q, k=k, v=k, num_threads=1)
except MemoryError:
    print("refused")
"""
    )
    assert done in ("", "refused")
