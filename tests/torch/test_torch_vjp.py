"""gqa.attention_vjp against PyTorch's autograd of attention by its definition, over the table of cases."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import cases  # noqa: E402
import differentiable  # noqa: E402
import gqa  # noqa: E402
from gradient_cases import assert_gradients_close, gradients  # noqa: E402

CASES = [*cases.HEADS, *cases.HEAD_DIMS[::4], *cases.ROWS[::5], *cases.KEYS[::7], *cases.WITH_OPTIONS[1::2]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case):
    x = differentiable.prepared(case)
    leaves = {n: None if y is None else torch.from_numpy(y).requires_grad_() for n, y in x.tensors.items()}
    options = x.options | {"allowed": torch.from_numpy(x.options["allowed"].copy())}
    out = differentiable.attention(torch, **leaves, **options)
    (out * torch.from_numpy(x.dout.copy())).sum().backward()
    expected = {f"d{n}": leaf.grad.numpy() for n, leaf in leaves.items() if leaf is not None}
    actual = gradients(x.arguments, x.dout, mask_grad=leaves["mask"] is not None)
    assert_gradients_close(actual, expected, x.magnitudes)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": True}])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_scaled_dot_product_attention(rng, heads, options):
    """PyTorch's own function, in float64."""
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in cases.tensors(rng, 70, 70, np.float64, heads=heads))
    mask = torch.from_numpy(rng.standard_normal((70, 70))).requires_grad_() if "attn_mask" in options else None
    given = {"attn_mask": mask} if mask is not None else options
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **given)
    dout = rng.standard_normal(out.shape)
    out.backward(torch.from_numpy(dout))
    ours = {"causal": "is_causal" in options} | ({} if mask is None else {"mask": mask.detach().numpy()})
    arrays = [x.detach().numpy() for x in (q, k, v)]
    forward = gqa.attention(*arrays, return_lse=True, **ours)
    actual = gqa.attention_vjp(dout, *arrays, *forward, mask_grad=mask is not None, **ours)
    for x, y in zip(actual, (q, k, v, mask)):
        if y is not None:
            np.testing.assert_allclose(x, y.grad.numpy(), rtol=0, atol=1e-13 * y.grad.abs().max().item())
