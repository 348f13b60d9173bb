"""Any strides, any alignment, read-only: the bits that contiguous arrays give, and inputs stay as they were."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import cases
import gqa
from compare import assert_same_bits, naming

OPTIONS = ("past", "float_mask", "sinks", "lengths", "offset")
case = pytest.mark.parametrize(
    "case",
    [
        cases.Case(queries=1, keys=270, options=OPTIONS),
        cases.Case(heads=(6, 2), queries=9, keys=130, head_dim=33, v_head_dim=17, options=OPTIONS),
        cases.Case(heads=(6, 2), queries=31, keys=300, options=OPTIONS),
    ],
    ids=str,
)


def transposed(x):
    """Axes in memory in the opposite order, but for the last."""
    axes = (*range(x.ndim - 1)[::-1], x.ndim - 1)
    return np.ascontiguousarray(x.transpose(axes)).transpose(axes)


def gaps(x):
    """Every other element of each axis but the last, and a part of longer rows."""
    wide = np.full([2 * n for n in x.shape], -1, x.dtype)
    view = wide[(*(slice(None, None, 2) for _ in x.shape[:-1]), slice(1, x.shape[-1] + 1))]
    view[...] = x
    return view


def reversed_axes(x):
    """Negative strides on each axis but the last."""
    backwards = (*(slice(None, None, -1) for _ in x.shape[:-1]), slice(None))
    return np.ascontiguousarray(x[backwards])[backwards]


def misaligned(x):
    """One byte off."""
    memory = np.empty(x.nbytes + 1, np.uint8)
    y = memory[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def fortran(x):
    """A last axis that is not contiguous."""
    return np.asfortranarray(x)


def last_axis_reversed(x):
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


WAYS = {
    way.__name__: way
    for way in (transposed, gaps, reversed_axes, misaligned, read_only, fortran, last_axis_reversed)
}  # fmt: skip


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("way", WAYS)
@case
def test_inputs_of_any_strides(isa, dtype, case, way, layout):
    """All of them in the same way, and one at a time."""
    arguments = case.arguments(dtype, layout)
    arrays = {name: x for name, x in arguments.items() if isinstance(x, np.ndarray)}
    expected = gqa.attention(**arguments)
    for chosen in (tuple(arrays), *((name,) for name in arrays)):
        inputs = {name: WAYS[way](arrays[name]) for name in chosen}
        with naming(*chosen):
            out = gqa.attention(**arguments | inputs)
            assert out.flags.c_contiguous
            assert_same_bits(out, expected)
            for name, x in inputs.items():
                assert_same_bits(np.ascontiguousarray(x), arrays[name])


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "read_only"])
@case
def test_an_output_of_any_strides(isa, dtype, case, way, layout):
    arguments = case.arguments(dtype, layout)
    expected, expected_lse = gqa.attention(**arguments, return_lse=True)
    out = WAYS[way](np.full_like(expected, 7))
    result, lse = gqa.attention(**arguments, out=out, return_lse=True)
    assert result is out
    assert_same_bits(np.ascontiguousarray(out), expected)
    assert_same_bits(lse, expected_lse)


@case
def test_an_output_leaves_what_lies_between_its_rows(isa, dtype, case):
    arguments = case.arguments(dtype)
    expected = gqa.attention(**arguments)
    memory = np.full((*expected.shape[:2], 2, *expected.shape[2:3], expected.shape[3] + 3), 7, dtype)
    gqa.attention(**arguments, out=memory[:, :, 1, :, 1:-2])
    assert_same_bits(np.ascontiguousarray(memory[:, :, 1, :, 1:-2]), expected)
    memory[:, :, 1, :, 1:-2] = 7
    assert (memory == 7).all()


@case
def test_heads_and_batch_of_stride_0(isa, dtype, case):
    """One KV head, or one sequence's keys, for all, by a view."""
    arguments = case.arguments(dtype)
    shared = {
        name: np.broadcast_to(arguments[name][:1, :1], arguments[name].shape)
        for name in ("k", "v", "past_key", "past_value")
    }
    mask = np.broadcast_to(arguments["mask"][:1, :1], (2, *arguments["mask"].shape))
    copies = {name: np.ascontiguousarray(x) for name, x in shared.items()} | {"mask": np.ascontiguousarray(mask)}
    assert_same_bits(gqa.attention(**arguments | shared | {"mask": mask}), gqa.attention(**arguments | copies))


@case
def test_tokens_of_stride_0(isa, dtype, case):
    arguments = case.arguments(dtype)
    views = {name: np.broadcast_to(arguments[name][:, :, :1], arguments[name].shape) for name in ("q", "k", "v")}
    copies = {name: np.ascontiguousarray(x) for name, x in views.items()}
    assert_same_bits(gqa.attention(**arguments | views), gqa.attention(**arguments | copies))


def test_overlapping_rows(isa, dtype):
    """Keys that are windows of one row of memory, one element further on each."""
    memory = np.linspace(-1, 1, 400).astype(dtype)
    size = memory.itemsize
    k = as_strided(memory, (1, 2, 100, 16), (0, 64 * size, size, size), writeable=False)
    q = np.ones((1, 4, 5, 16), dtype)
    assert_same_bits(gqa.attention(q, k, k), gqa.attention(q, k.copy(), k.copy()))


@pytest.mark.parametrize("head_dim", [1, 3, 16])
def test_values_that_are_a_view_of_the_keys(isa, dtype, head_dim):
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, heads, 40, head_dim + 4)).astype(dtype) for heads in (4, 2))
    assert_same_bits(gqa.attention(q, k, k[..., 2:-2]), gqa.attention(q, k, k[..., 2:-2].copy()))


@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("way", WAYS)
def test_quantised_arrays_of_any_strides(isa, queries, way):
    arguments = cases.Case(queries=queries, keys=140).arguments(np.float32)
    tensors = {name: gqa.quantize(arguments[name]) for name in ("k", "v")}
    expected = gqa.attention(**arguments | tensors)
    views = {name: gqa.Quantized(WAYS[way](x.data), WAYS[way](x.scale)) for name, x in tensors.items()}
    assert_same_bits(gqa.attention(**arguments | views), expected)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("options", [(), ("past", "causal"), ("bool_mask", "sinks"), ("window",)], ids=str)
def test_without_the_batch_axis(isa, dtype, layout, options):
    case = cases.Case(queries=7, keys=150, batch=1, options=options)
    batched = case.arguments(dtype, layout)
    single = {name: x[0] if isinstance(x, np.ndarray) and x.ndim == 4 else x for name, x in batched.items()}
    for more in ({}, {"kv_lengths": 101, "query_offset": 90}):
        out, lse = gqa.attention(**batched, return_lse=True, **{name: [n] for name, n in more.items()})
        out1, lse1 = gqa.attention(**single, return_lse=True, **more)
        assert_same_bits(out1, out[0])
        assert_same_bits(lse1, lse[0])
        given = np.empty_like(out1)
        assert gqa.attention(**single, out=given, **more) is given
        assert_same_bits(given, out1)


@case
def test_layouts_give_the_same_bits(isa, dtype, case):
    out, lse = gqa.attention(**case.arguments(dtype), return_lse=True)
    out1, lse1 = gqa.attention(**case.arguments(dtype, "bshd"), return_lse=True)
    assert_same_bits(np.ascontiguousarray(out1.swapaxes(1, 2)), out)
    assert_same_bits(np.ascontiguousarray(lse1.swapaxes(1, 2)), lse)
