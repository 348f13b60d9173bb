"""gqa.torch.scaled_dot_product_attention against PyTorch's own, and what is handed to that."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gqa.torch  # noqa: E402
from gqa.torch import scaled_dot_product  # noqa: E402

attend = gqa.torch.scaled_dot_product_attention
expected = torch.nn.functional.scaled_dot_product_attention

# Half precision: the other rounds the probabilities as well, and scores on the way.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 3e-3, torch.bfloat16: 3e-2}
CALLS = {
    "plain": {},
    "causal, fewer queries than keys": {"is_causal": True},
    "scale": {"scale": 0.5},
    "a mask of bools": {"attn_mask": torch.arange(7 * 9).reshape(7, 9) % 4 > 0},
    "a mask for each head": {"attn_mask": torch.arange(4 * 7 * 9).reshape(4, 7, 9) % 4 > 0},
    "a mask of numbers": {"attn_mask": torch.linspace(-3, 3, 63).reshape(7, 9)},
    "rows without keys": {"attn_mask": (torch.arange(7) % 2 > 0)[:, None].expand(7, 9)},
}
SIZES = {
    "as many heads": ((2, 4, 7, 16), (2, 4, 9, 16), (2, 4, 9, 16)),
    "groups, other values": ((2, 4, 7, 16), (2, 2, 9, 16), (2, 2, 9, 24)),
    "one head of keys": ((1, 4, 7, 8), (1, 1, 9, 8), (1, 1, 9, 8)),
    "no batch": ((4, 7, 16), (2, 9, 16), (2, 9, 16)),
}


def tensors(sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*size, generator=generator).to(dtype) for size in sizes]


@pytest.fixture
def handed_over(monkeypatch):
    """A list of the calls of PyTorch's own function."""
    calls = []
    own = scaled_dot_product.torchs_own
    monkeypatch.setattr(scaled_dot_product, "torchs_own", lambda *x, **y: calls.append(x) or own(*x, **y))
    return calls


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_against_pytorch(dtype, sizes, call, handed_over):
    given = tensors(SIZES[sizes], dtype)
    options = {**CALLS[call], "enable_gqa": given[0].shape[-3] != given[1].shape[-3]}
    mask = options.pop("attn_mask", None)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    result = attend(*given, mask, **options)
    assert handed_over == []
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    reference = expected(*(x.double() for x in given), mask, **options)
    torch.testing.assert_close(result.double(), reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert (result.dtype, result.shape) == (dtype, reference.shape)


def test_the_output_has_tokens_before_heads_in_memory():
    given = tensors(SIZES["groups, other values"])
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    results = [function(*given, is_causal=True, enable_gqa=True) for function in (attend, compiled)]
    for x in results:
        assert x.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(*results, rtol=0, atol=0)


def handed():
    """Calls that gqa leaves to PyTorch, by name: arguments, options and what PyTorch raises."""
    q, k, v = tensors(SIZES["as many heads"])
    grouped = tensors(SIZES["groups, other values"])
    mask = torch.ones(7, 9, dtype=torch.bool)
    nested = torch.nested.nested_tensor([torch.randn(3, 4, 16), torch.randn(2, 4, 16)], layout=torch.jagged)
    return {
        "dropout": ((q, k, v), {"dropout_p": 1.0}, None),
        "five axes": ((q[None], k[None], v[None]), {}, None),
        "two axes": ((q[0, 0], k[0, 0], v[0, 0]), {}, None),
        "a batch that broadcasts": ((q, k[:1], v[:1]), {}, None),
        "a head that broadcasts": ((q, k[:, :1], v[:, :1]), {}, None),
        "a mask that widens": ((q[:1], k[:1], v[:1]), {"attn_mask": mask.expand(3, 1, 7, 9)}, "shape|expand|size"),
        "meta tensors": ((q.to("meta"), k.to("meta"), v.to("meta")), {}, None),
        "nested tensors": ((nested.transpose(1, 2),) * 3, {}, None),
        "groups without leave": (grouped, {}, "size|match"),
        "heads that form no groups": ((q[:, :3], k[:, :2], v[:, :2]), {"enable_gqa": True}, "divisible|of heads"),
        "a mask besides causal": ((q, k, v), {"is_causal": True, "attn_mask": mask}, None),
        "a mask of integers": ((q, k, v), {"attn_mask": mask.long()}, "dtype"),
        "different dtypes": ((q, k.double(), v), {}, "dtype"),
        "integers": ((q.int(), k.int(), v.int()), {}, "."),
        "channels that differ": ((q[..., :8], k, v), {}, "."),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("call", list(handed()))
def test_what_is_handed_to_pytorch(call, handed_over):
    arguments, options, error = handed()[call]
    if error is None:
        result, reference = (function(*arguments, **options) for function in (attend, expected))
        assert (result.shape, result.dtype, result.device) == (reference.shape, reference.dtype, reference.device)
        if result.is_nested:
            result, reference = result.values(), reference.values()
        if not result.is_meta:
            assert torch.equal(result, reference)
    else:
        with pytest.raises((RuntimeError, ValueError), match=error):
            attend(*arguments, **options)
    assert len(handed_over) == 1


def test_autocast(handed_over):
    q, k, v = tensors(SIZES["as many heads"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = torch.linspace(-1, 1, 63).reshape(7, 9)
        for arguments in ((q, k, v), (q, k.bfloat16(), v), (q, k, v, mask)):
            result = attend(*arguments)
            assert result.dtype == expected(*arguments).dtype == torch.bfloat16
            torch.testing.assert_close(result, attend(*(x.bfloat16() for x in arguments)), rtol=0, atol=0)
    assert handed_over == []


def test_in_place_of_pytorchs_own(monkeypatch, handed_over):
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    q, k, v = tensors(SIZES["as many heads"])
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(result, expected(q, k, v, is_causal=True), rtol=2e-6, atol=2e-6)
    assert handed_over == []
    assert torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=1.0).abs().sum() == 0
    assert len(handed_over) == 1


def test_not_a_number():
    q, k, v = tensors(SIZES["as many heads"])
    q[0, 0, 3, 0] = torch.nan
    assert attend(q, k, v)[0, 0].isnan().all(-1).nonzero().flatten().tolist() == [3]
