"""The backward pass against float64, over the table of cases: instruction sets, element types, layouts, threads."""

import numpy as np
import pytest

import cases
import gqa
import gradient_oracle
from axes import DTYPES
from compare import assert_same_bits, naming
from gradient_cases import assert_gradients_close, expected, gradients, problem


def check(case, dtype, layout, threads):
    with naming(layout, f"{threads} threads"):
        arguments, dout = problem(case, dtype, layout)
        mask = arguments.get("mask")
        wants_mask = mask is not None and mask.dtype != bool
        actual = gradients(arguments, dout, mask_grad=wants_mask, num_threads=threads)
        assert (actual.dmask is None) == (not wants_mask)
        assert (actual.dsinks is None) == ("sinks" not in arguments)
        for name, x in actual._asdict().items():
            if x is not None:
                assert x.dtype == arguments[name[1:]].dtype
        assert_gradients_close(actual, *expected(case, dtype, layout), out_dtype=dtype)


@pytest.mark.parametrize("case", cases.ALL_ARRAYS, ids=str)
def test_case(case, isa):
    check(case, np.float32, "bhsd", threads=1)


@pytest.mark.parametrize("case", cases.WITH_OPTIONS[1::2], ids=str)
def test_element_types(case, isa, dtype):
    check(case, dtype, "bhsd", threads=1)


@pytest.mark.parametrize("case", cases.WITH_OPTIONS, ids=str)
def test_layout_of_tokens_first(case, isa):
    check(case, np.float32, "bshd", threads=2)


# Several chunks of 1024 rows, and more blocks of keys than one.
CHUNKS = [
    cases.Case(heads=heads, queries=queries, keys=keys, head_dim=24, v_head_dim=40, batch=batch, options=options)
    for heads, queries, keys, batch, options in (
        ((16, 1), 140, 120, 2, ()),
        ((14, 1), 150, 150, 1, ("causal",)),
        ((32, 2), 70, 200, 2, ("causal", "offset")),
        ((20, 1), 110, 300, 1, ("window", "lengths")),
        ((16, 1), 140, 140, 1, ("causal", "float_mask", "sinks")),
        ((30, 2), 70, 97, 1, ("softcap", "bool_mask")),
        ((13, 1), 90, 200, 2, ("causal", "window", "lengths", "scale")),
    )
]


@pytest.mark.parametrize("case", CHUNKS, ids=str)
def test_chunks_of_rows(case, isa, dtype):
    for threads in (1, 3):
        check(case, dtype, "bhsd", threads)


@pytest.mark.parametrize("head_dims", [(576, 512), (300, 20), (1, 1)])
def test_chunks_of_fewer_rows(head_dims, isa):
    case = cases.Case(heads=(8, 1), queries=100, keys=70, head_dim=head_dims[0], v_head_dim=head_dims[1], batch=1)
    check(case, np.float32, "bhsd", threads=2)


@pytest.mark.parametrize("k_dtype", DTYPES)
@pytest.mark.parametrize("v_dtype", DTYPES)
def test_tensors_of_different_dtypes(isa, dtype, k_dtype, v_dtype):
    arguments, dout = problem(cases.Case(queries=13, keys=210, options=("causal", "sinks")), np.float64)
    dtypes = {"q": dtype, "k": DTYPES[k_dtype], "v": DTYPES[v_dtype], "sinks": DTYPES[v_dtype]}
    arguments |= {name: arguments[name].astype(dtypes[name]) for name in dtypes}
    dout = dout.astype(DTYPES[k_dtype])
    actual = gradients(arguments, dout)
    assert {name: getattr(actual, f"d{name}").dtype for name in dtypes} == {n: np.dtype(x) for n, x in dtypes.items()}
    truth = gradient_oracle.attention_vjp(dout, **arguments)
    assert_gradients_close(actual, *truth, out_dtype=dtype)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("options", [(), ("causal", "lengths"), ("float_mask", "sinks"), ("softcap", "window")])
def test_gradient_by_lse(isa, dtype, layout, rng, options):
    arguments, dout = problem(cases.Case(heads=(6, 2), queries=26, keys=203, options=options), dtype, layout)
    dlse = rng.standard_normal(dout.shape[:-1]).astype(np.float32)
    actual = gradients(arguments, dout, dlse)
    truth = gradient_oracle.attention_vjp(dout, **arguments, dlse=dlse)
    assert_gradients_close(actual, *truth, out_dtype=dtype)


@pytest.mark.parametrize(
    "shape",
    [(2, 4, 70, 203), (1, 4, 70, 203), (2, 1, 70, 203), (4, 1, 203), (2, 1, 1, 1), (1, 203), (70, 1), (203,), (1,), ()],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_gradient_by_a_broadcast_mask(isa, dtype, rng, shape, threads):
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=70, keys=203, options=("causal",)), dtype)
    arguments["mask"] = rng.standard_normal(shape).astype(dtype)
    actual = gradients(arguments, dout, mask_grad=True, num_threads=threads)
    truth = gradient_oracle.attention_vjp(dout, **arguments)
    assert actual.dmask.dtype == dtype
    assert_gradients_close(actual, *truth, out_dtype=dtype)


@pytest.mark.parametrize("scale", [0, -0.4, 3.0])
def test_scale_of_any_sign(isa, scale):
    arguments, dout = problem(cases.Case(queries=40, keys=150), np.float32)
    arguments["scale"] = scale
    assert_gradients_close(gradients(arguments, dout), *gradient_oracle.attention_vjp(dout, **arguments))


def test_out_of_float32_leaves_one_rounding(isa, rng):
    """delta is then as exact as the sums."""
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=100, keys=100, head_dim=64, v_head_dim=64), np.float16)
    tensors = [arguments[name] for name in ("q", "k", "v")]
    out, lse = gqa.attention(*tensors, causal=True, return_lse=True, out_dtype="float32")
    actual = gqa.attention_vjp(dout, *tensors, out, lse, causal=True)
    assert_gradients_close(actual, *gradient_oracle.attention_vjp(dout, *tensors, causal=True))


def test_any_strides(isa, rng):
    arguments, dout = problem(cases.Case(heads=(4, 2), queries=50, keys=120, options=("causal",)), np.float32)
    plain = gradients(arguments, dout)
    for order in ("F", "reversed", "wide"):

        def laid(x, order=order):
            if order == "F":
                return np.asfortranarray(x)
            if order == "reversed":
                return x[..., ::-1].copy()[..., ::-1]
            return np.repeat(x, 2, axis=-1)[..., ::2]

        out, lse = gqa.attention(**arguments, return_lse=True)
        tensors = [laid(x) for x in (dout, arguments["q"], arguments["k"], arguments["v"], out)]
        actual = gqa.attention_vjp(*tensors, np.asfortranarray(lse), causal=True)
        for x, y in zip(actual[:3], plain[:3]):
            assert_same_bits(x, y)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_unbatched(isa, layout):
    case = cases.Case(queries=33, keys=110, batch=1, options=("causal", "float_mask"))
    arguments, dout = problem(case, np.float32, layout)
    arguments["mask"] = arguments["mask"][None]
    batched = gradients(arguments, dout, mask_grad=True)
    alone = {name: x[0] if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    for x, y in zip(gradients(alone, dout[0], mask_grad=True)[:4], batched[:4]):
        assert_same_bits(x, y[0])
