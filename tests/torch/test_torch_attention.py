"""gqa.torch.attention and varlen_attention against gqa's own functions: eagerly, compiled, traced and described."""

import pytest

import gqa
from compare import assert_same_bits
from gqa import _core

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gqa.torch  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CALLS = {
    "plain": {},
    "causal, window, soft cap": {"causal": True, "window": (3, None), "softcap": 5.0, "scale": 0.3},
    "lse": {"return_lse": True},
    "positions": {"kv_lengths": [9, 4], "query_offset": torch.tensor([3, -1]), "causal": True},
    "lengths": {"kv_lengths": torch.tensor([9, 4], dtype=torch.int32)},
    "one offset": {"query_offset": 0, "causal": True},
    "mask": {"mask": torch.arange(9) % 3 > 0},
    "masks": {"mask": torch.arange(2 * 4 * 5 * 9).reshape(2, 4, 5, 9) % 3 > 0},
    "added mask": {"mask": torch.linspace(-2, 2, 45).reshape(5, 9)},
    "sinks": {"sinks": torch.linspace(-1, 2, 4)},
    "layout": {"layout": "bshd", "return_lse": True},
    "threads": {"num_threads": 2},
    "float32 of half precision": {"out_dtype": torch.float32, "return_lse": True},
}
PACKED = {
    "plain": {},
    "causal, window": {"causal": True, "window": (1, None), "return_lse": True},
    "lengths": {"kv_lengths": torch.tensor([3, 0, 2]), "sinks": torch.zeros(4)},
    "mask": {"mask": torch.ones(4, 5, dtype=torch.bool).tril(), "softcap": 4.0},
}


def tensors(dtype=torch.float32, layout="bhsd", tokens=(5, 9, 9), batch=2):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, h, n, 16, generator=generator).to(dtype) for h, n in zip((4, 2, 2), tokens)]
    return [x.transpose(1, 2).contiguous() if layout == "bshd" else x for x in made]


def packed(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        *(torch.randn(n, h, 16, generator=generator).to(dtype) for n, h in ((8, 4), (12, 2), (12, 2))),
        torch.tensor([0, 4, 5, 7]),
        torch.tensor([0, 5, 8, 11], dtype=torch.int32),
    ]


def array(x):
    """What gqa itself takes for an argument of gqa.torch."""
    if isinstance(x, torch.Tensor):
        return _core.as_array("x", x)
    return str(x).removeprefix("torch.") if isinstance(x, torch.dtype) else x


def assert_equal(result, expected):
    """Bits, shapes and dtypes of tensors, or tuples of them, as of arrays."""
    assert isinstance(result, tuple) == isinstance(expected, tuple)
    results, expecteds = ((x,) if not isinstance(x, tuple) else x for x in (result, expected))
    for x, y in zip(results, expecteds, strict=True):
        assert isinstance(x, torch.Tensor)
        assert_same_bits(array(x), y)


def compiled(function, **options):
    """Without graph breaks, and without generating code."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eagerly_and_compiled_the_bits_of_gqa(dtype, call):
    options = CALLS[call]
    if "out_dtype" in options and dtype == torch.float64:
        pytest.skip("of half precision")
    given = tensors(dtype, options.get("layout", "bhsd"))
    expected = gqa.attention(*map(array, given), **{name: array(x) for name, x in options.items()})
    assert_equal(gqa.torch.attention(*given, **options), expected)
    assert_equal(compiled(lambda *x: gqa.torch.attention(*x, **options))(*given), expected)


@pytest.mark.parametrize("call", PACKED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed(dtype, call):
    given, options = packed(dtype), PACKED[call]
    expected = gqa.varlen_attention(*map(array, given), **{name: array(x) for name, x in options.items()})
    assert_equal(gqa.torch.varlen_attention(*given, **options), expected)
    assert_equal(gqa.torch.varlen_attention(*given[:3], [0, 4, 5, 7], [0, 5, 8, 11], **options), expected)
    assert_equal(compiled(lambda *x: gqa.torch.varlen_attention(*x, **options))(*given), expected)


@pytest.mark.parametrize("new", [True, False], ids=["a past and new keys", "a past alone"])
def test_a_past(new):
    q, k, v = tensors()
    past = dict(zip(("past_key", "past_value"), tensors(torch.float16)[1:]))
    arguments = (q, k, v) if new else (q,)
    expected = gqa.attention(*map(array, arguments), causal=True, **{name: array(x) for name, x in past.items()})
    assert_equal(gqa.torch.attention(*arguments, causal=True, **past), expected)
    attend = compiled(lambda *x, **past: gqa.torch.attention(*x, causal=True, **past))
    assert_equal(attend(*arguments, **past), expected)


def test_unbatched_and_empty():
    q, k, v = (x[0] for x in tensors())
    expected = gqa.attention(*map(array, (q, k, v)), kv_lengths=7, query_offset=2, causal=True)
    options = {"kv_lengths": 7, "query_offset": 2, "causal": True}
    assert_equal(gqa.torch.attention(q, k, v, **options), expected)
    assert_equal(compiled(lambda *x: gqa.torch.attention(*x, **options))(q, k, v), expected)
    for tokens in ((0, 9, 9), (5, 0, 0)):
        given = tensors(tokens=tokens)
        assert_equal(gqa.torch.attention(*given), gqa.attention(*map(array, given)))
        assert_equal(compiled(gqa.torch.attention)(*given), gqa.attention(*map(array, given)))


def test_quantised_keys():
    q, k, v = tensors()
    k, v = (gqa.quantize(x.numpy()) for x in (k, v))
    assert_equal(gqa.torch.attention(q, k, v), gqa.attention(q.numpy(), k, v))
    with pytest.raises(TypeError, match=r"k is quantised, expected a torch\.Tensor"):
        gqa.torch.attention(q.requires_grad_(), k, v)


def test_parameters_and_out():
    q, k, v = tensors()
    expected = gqa.attention(*map(array, (q, k, v)))
    with torch.no_grad():
        assert_equal(gqa.torch.attention(torch.nn.Parameter(q), torch.nn.Parameter(k), v), expected)
    out = torch.empty(2, 5, 4, 16).transpose(1, 2)
    assert gqa.torch.attention(q, k, v, out=out) is out
    assert_equal(out, expected)
    result, lse = gqa.torch.attention(q, k, v, out=out, return_lse=True)
    assert result is out
    assert lse.shape == (2, 4, 5)


def test_nothing_is_copied(monkeypatch):
    seen = []
    whole = gqa.torch.calls.scaled_dot_product.attention

    def spy(*arrays, **options):
        seen.append([array(x).ctypes.data for x in (*arrays, options["out"], options["mask"])])
        return whole(*arrays, **options)

    monkeypatch.setattr(gqa.torch.calls.scaled_dot_product, "attention", spy)
    for dtype in DTYPES:
        given = [x.transpose(1, 2) for x in tensors(dtype, "bshd")]
        mask = torch.ones(5, 9, dtype=torch.bool)
        for attend in (gqa.torch.attention, compiled(gqa.torch.attention)):
            out = attend(*given, mask=mask)
            assert seen.pop() == [x.data_ptr() for x in (*given, out, mask)]


# ---- what PyTorch sees ---------------------------------------------------------------------------------------------


def test_the_operators_are_sound():
    """Schemas, descriptions and compiled results, by PyTorch's own checks."""
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    for layout in ("bhsd", "bshd"):
        given = tensors(layout=layout)
        settings = (None, torch.zeros(4), True, 3, None, 0.5, 0.0, None, 1, None, [])
        for positions in ((None, None, None), (torch.tensor([9, 4]), None, 0), (None, torch.tensor([1, 2]), None)):
            arguments = (*given, None, None, *positions, layout, *settings)
            torch.library.opcheck(torch.ops.gqa.attention.default, arguments, test_utils=tests)
    arguments = (*packed(), None, None, None, True, None, None, None, 0.0, None, None, None, [])
    torch.library.opcheck(torch.ops.gqa.varlen_attention.default, arguments, test_utils=tests)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # what its own modules use of each other
def test_code_generated_by_inductor():
    torch._dynamo.reset()

    weights = torch.eye(16)

    def layer(q, k, v):  # of what needs no compiler of C++
        return gqa.torch.attention(q.mT.contiguous().mT @ weights, k, v.transpose(1, 2), layout="bshd") @ weights

    q, k, v = tensors(layout="bshd")
    given = q, k, v.transpose(1, 2)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(*given), layer(*given))


def test_sizes_that_are_symbols():
    attend = compiled(
        lambda q, k, v: gqa.torch.attention(q, k, v, causal=True, query_offset=k.shape[2] - 1), dynamic=True
    )
    for tokens in ((1, 9, 9), (1, 11, 11), (3, 12, 12)):
        given = tensors(tokens=tokens)
        assert_equal(attend(*given), gqa.attention(*map(array, given), causal=True, query_offset=tokens[1] - 1))


def test_export():
    program = torch.export.export(Layer(), tuple(tensors()))
    assert [str(node.target) for node in program.graph.nodes].count("gqa.attention.default") == 1
    assert_equal(program.module()(*tensors()), gqa.attention(*map(array, tensors()), causal=True))


class Layer(torch.nn.Module):
    def forward(self, q, k, v):
        return gqa.torch.attention(q, k, v, causal=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_and_meta_tensors(dtype):
    with torch._subclasses.FakeTensorMode():
        given = [torch.empty_strided(x.shape, x.stride(), dtype=dtype) for x in tensors(dtype)]
        out, lse = gqa.torch.attention(*given, return_lse=True)
    assert (out.shape, out.dtype, out.device.type) == ((2, 4, 5, 16), dtype, "cpu")
    assert (lse.shape, lse.dtype) == ((2, 4, 5), torch.float64 if dtype == torch.float64 else torch.float32)
    meta = gqa.torch.varlen_attention(*(x.to("meta") for x in packed(dtype)))
    assert (meta.shape, meta.dtype, meta.device.type) == ((8, 4, 16), dtype, "meta")


class Names(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_profiles_and_modes_show_the_operator():
    given = tensors()
    with torch.profiler.profile() as profile:
        gqa.torch.attention(*given)
    assert "gqa::attention" in {event.key for event in profile.key_averages()}

    with Names() as names:
        expected = gqa.torch.attention(*given)
    assert names.seen == ["gqa.attention.default"]
    assert_equal(gqa.torch.attention(*given), array(expected))


def test_vmap():
    q, k, v = (torch.stack([x, x + 1]) for x in tensors())
    result = torch.vmap(gqa.torch.attention)(q, k, v)
    for i in range(2):
        assert_equal(result[i], gqa.attention(*(array(x[i]) for x in (q, k, v))))
    result = torch.vmap(gqa.torch.attention, (0, None, 3))(q, k[0], v.movedim(0, 3))
    assert_equal(result[1], gqa.attention(*(array(x) for x in (q[1], k[0], v[1]))))


# ---- refused -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    q, k, v = tensors()
    for options, kind, message in (
        ({"kv_lengths": [1, 2, 3]}, ValueError, r"kv_lengths has shape \(3,\), expected \(2,\)"),
        ({"mask": torch.ones(3, 9)}, ValueError, "mask has shape .* does not broadcast"),
        ({"window": (-1, 0)}, ValueError, "window"),
        ({"causal": 1}, TypeError, "causal is 1, expected True or False"),
        ({"v": None}, ValueError, "k is given without v"),
        ({"k": k[:, :, :4]}, ValueError, "v has 9 tokens, expected 4 as k"),
        ({"out_dtype": torch.int8}, TypeError, "out_dtype"),
        ({"dropout": 0.5}, TypeError, "dropout"),
    ):
        arguments = {"q": q, "k": k, "v": v, **options}
        with pytest.raises(kind, match=message):
            gqa.torch.attention(**arguments)
        with pytest.raises(kind, match=message), Names():
            gqa.torch.attention(**arguments)
    with pytest.raises(TypeError, match=r"q is a ndarray, expected a torch\.Tensor"):
        gqa.torch.attention(q.numpy(), k, v)
    with pytest.raises(ValueError, match=r"k, a Tensor, .*resolve_neg"):
        gqa.torch.attention(q, torch.complex(k, k).conj().imag, v)
    with pytest.raises(TypeError, match="out is given, but nothing can be written to"):
        gqa.torch.attention(q.requires_grad_(), k, v, out=torch.empty_like(q))
