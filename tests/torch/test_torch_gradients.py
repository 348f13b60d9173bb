"""Gradients of gqa.torch against differences (in float64) and against PyTorch's autograd."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gqa.torch  # noqa: E402

OPTIONS = {
    "plain": {},
    "causal, soft cap": {"causal": True, "softcap": 3.0, "scale": 0.5},
    "window": {"window": (2, 1)},
    "positions": {"kv_lengths": [7, 4], "query_offset": torch.tensor([2, -1]), "causal": True},
    "a mask of bools": {"mask": torch.arange(35).reshape(5, 7) % 4 > 0},
    "layout": {"layout": "bshd", "causal": True},
}
# Half precision: of gradients of about 1; the other rounds probabilities and their gradients as well.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def tensors(dtype=torch.float64, layout="bhsd", tokens=(5, 7, 7), head_dims=(4, 4, 3)):
    torch.manual_seed(0)
    made = [torch.randn(2, h, n, d, dtype=dtype) for h, n, d in zip((4, 2, 2), tokens, head_dims)]
    return [(x.transpose(1, 2).contiguous() if layout == "bshd" else x).requires_grad_() for x in made]


def gradients(function, given):
    """By each tensor, of a sum with weights that differ."""
    for x in given:
        x.grad = None
    out = function(*given)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return [x.grad for x in given]


@pytest.mark.parametrize("options", OPTIONS)
def test_against_differences(options):
    """Of the output and of the log-sum-exp, unless that of a row without keys is -infinity."""
    options = {"return_lse": options != "positions", **OPTIONS[options]}
    given = tensors(layout=options.get("layout", "bhsd"))
    assert torch.autograd.gradcheck(lambda *x: gqa.torch.attention(*x, **options), given)


def test_masks_and_sinks_against_differences():
    for shape in ((2, 4, 5, 7), (4, 1, 7), (5, 7), (1, 1)):
        mask = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
        given = (*tensors(), mask, sinks)
        assert torch.autograd.gradcheck(lambda q, k, v, m, s: gqa.torch.attention(q, k, v, mask=m, sinks=s), given)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_a_past_against_differences(layout):
    q, *new = tensors(layout=layout, tokens=(5, 2, 2))
    past = tensors(layout=layout)[1:]
    options = {"causal": True, "layout": layout}

    def attend(q, k, v, past_key, past_value):
        return gqa.torch.attention(q, k, v, past_key=past_key, past_value=past_value, **options)

    assert torch.autograd.gradcheck(attend, (q, *new, *past))
    assert torch.autograd.gradcheck(lambda q, *past: attend(q, None, None, *past), (q, *past))


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 3.0}, {"window": (2, None)}], ids=str)
def test_packed_against_differences(options):
    torch.manual_seed(0)
    given = [torch.randn(n, h, 4, dtype=torch.float64, requires_grad=True) for n, h in ((8, 4), (12, 2), (12, 2))]
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def attend(q, k, v, sinks):
        return gqa.torch.varlen_attention(q, k, v, [0, 4, 5, 8], [0, 5, 8, 12], sinks=sinks, return_lse=True, **options)

    assert torch.autograd.gradcheck(attend, (*given, sinks))


@pytest.mark.parametrize("tokens", [(5, 7, 7), (130, 130, 130)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_against_pytorch(dtype, tokens):
    """scaled_dot_product_attention, also within a graph."""
    given = tensors(dtype, tokens=tokens, head_dims=(16, 16, 16))
    options = {"is_causal": True, "enable_gqa": True}
    exact = gradients(
        lambda *x: torch.nn.functional.scaled_dot_product_attention(*x, **options),
        [x.detach().double().requires_grad_() for x in given],
    )
    torch._dynamo.reset()
    compiled = torch.compile(gqa.torch.scaled_dot_product_attention, fullgraph=True, backend="aot_eager")
    eager = None
    for function in (gqa.torch.scaled_dot_product_attention, compiled):
        found = gradients(lambda *x, function=function: function(*x, **options), given)
        for x, y, z in zip(found, exact, eager or found):
            assert x.dtype == dtype
            assert torch.equal(x, z)
            torch.testing.assert_close(x.double(), y, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        eager = [x.clone() for x in found]


def test_compiled_with_all_that_is_differentiable():
    given = [*tensors(), torch.randn(5, 7, dtype=torch.float64, requires_grad=True)]
    given.append(torch.randn(4, dtype=torch.float64, requires_grad=True))

    def attend(q, k, v, mask, sinks):
        out, lse = gqa.torch.attention(q, k, v, mask=mask, sinks=sinks, causal=True, return_lse=True)
        return out * lse[..., None]

    def attend_packed(q, k, v):
        rows = (x[0].transpose(0, 1) for x in (q, k, v))
        return gqa.torch.varlen_attention(*rows, [0, 2, 4], [0, 3, 4], causal=True)

    for function, inputs in ((attend, given), (attend_packed, tensors(tokens=(4, 4, 4)))):
        expected = [x.clone() for x in gradients(function, inputs)]
        torch._dynamo.reset()
        found = gradients(torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_the_operators_are_sound():
    """By PyTorch's own checks, of gradients among them."""
    settings = (
        None,
        torch.zeros(4, dtype=torch.float64, requires_grad=True),
        True,
        3,
        None,
        0.5,
        0.0,
        None,
        1,
        None,
        [],
    )
    arguments = (*tensors(), None, None, None, None, 0, "bhsd", *settings)
    torch.library.opcheck(torch.ops.gqa.attention.default, arguments)
    q, k, v = (x.detach()[0].transpose(0, 1).contiguous().requires_grad_() for x in tensors(tokens=(4, 4, 4)))
    ends = torch.tensor([0, 2, 4])
    settings = (None, None, True, None, None, None, 0.0, None, None, None, [])
    torch.library.opcheck(torch.ops.gqa.varlen_attention.default, (q, k, v, ends, ends, None, *settings))


def test_what_needs_no_gradient_gets_none():
    q, k, v = tensors()
    k.requires_grad_(False)
    gqa.torch.attention(q, k, v).sum().backward()
    assert (q.grad.shape, k.grad, v.grad.shape) == (q.shape, None, v.shape)
    _, lse = gqa.torch.attention(q, k, v, return_lse=True)
    (found,) = torch.autograd.grad(lse.sum(), q)  # alone: the output goes unused
    expected = torch.logsumexp(q @ k.repeat_interleave(2, 1).mT / 2, dim=-1)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), q)[0], rtol=0, atol=1e-12)


def test_refused():
    q, k, v = tensors()
    out = gqa.torch.attention(q, k, v)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        first.sum().backward()
    q, k, v = (x.detach()[0].transpose(0, 1).requires_grad_() for x in tensors(tokens=(4, 4, 4)))
    mask = torch.zeros(4, 4, requires_grad=True)
    out = gqa.torch.varlen_attention(q, k, v, [0, 4], [0, 4], mask=mask)
    with pytest.raises(NotImplementedError, match="mask requires a gradient"):
        out.sum().backward()
