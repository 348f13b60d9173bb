"""Score functions under gqa.torch: eagerly, with gradients, compiled and exported."""

import io

import numpy as np
import pytest

import gqa

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gqa.torch  # noqa: E402

SLOPES = {"NumPy": 2.0 ** -np.arange(4), "PyTorch": 2.0 ** -torch.arange(4, dtype=torch.float64)}
SLOPES["read-only"] = np.broadcast_to(np.float64(0.25), 4)
SLOPES["backwards"] = SLOPES["NumPy"][::-1]


def score_mod_of(slopes):
    return lambda score, b, h, i, j: 2 * torch.tanh(score / 2) - slopes[h] * (i - j)


def mask_mod(b, h, i, j):
    return (j <= i + 1) & (i - j < 4)


def tensors(tokens=(5, 7, 7), batch=(2,)):
    torch.manual_seed(0)
    made = [torch.randn(*batch, h, n, 4, dtype=torch.float64) for h, n in zip((4, 2, 2), tokens)]
    return [x.requires_grad_() for x in made]


def packed():
    return [x.detach().transpose(0, 1).contiguous().requires_grad_() for x in tensors((8, 12, 12), ())]


def attend_packed(q, k, v, **options):
    return gqa.torch.varlen_attention(q, k, v, [0, 4, 8], [0, 5, 12], **options)


def plainly(q, k, v, score_mod):
    """The same by operators of PyTorch: (2, 4, 5, 4)."""
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 4, 5, 7)), indexing="ij")
    scores = q @ k.repeat_interleave(2, 1).mT / 2
    scores = score_mod(scores, b, h, i + 2, j).masked_fill(~mask_mod(b, h, i + 2, j), -torch.inf)
    return scores.softmax(-1) @ v.repeat_interleave(2, 1)


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("slopes", SLOPES)
def test_gradients(slopes):
    score_mod, given = score_mod_of(SLOPES[slopes]), tensors()

    def attend(*given):
        return gqa.torch.attention(*given, score_mod=score_mod, mask_mod=mask_mod)

    torch.testing.assert_close(
        attend(*given),
        plainly(*given, score_mod_of(torch.tensor(SLOPES[slopes].tolist(), dtype=torch.float64))),
        rtol=0,
        atol=1e-12,
    )
    with torch.no_grad():
        assert torch.equal(attend(*given), attend(*(x.detach().requires_grad_() for x in given)))
    assert torch.autograd.gradcheck(attend, given)
    assert torch.autograd.gradcheck(lambda *x: attend_packed(*x, score_mod=score_mod, mask_mod=mask_mod), packed())
    assert torch.autograd.gradcheck(lambda *x: attend_packed(*x, mask_mod=mask_mod), packed())


def test_a_captured_tensor_gets_no_gradient():
    slopes = SLOPES["PyTorch"].clone().requires_grad_()
    q, k, v = tensors()
    gqa.torch.attention(q, k, v, score_mod=score_mod_of(slopes)).sum().backward()
    assert slopes.grad is None
    assert q.grad is not None
    with torch.no_grad():
        expected = gqa.torch.attention(q, k, v, score_mod=score_mod_of(slopes.detach()))
        assert torch.equal(gqa.torch.attention(q, k, v, score_mod=score_mod_of(slopes)), expected)


@pytest.mark.parametrize("attend", [gqa.torch.attention, attend_packed], ids=["attention", "varlen_attention"])
@pytest.mark.parametrize("library", ["NumPy", "PyTorch"])
def test_a_program_in_one_graph(attend, library):
    """Its arrays are read when it runs, and another program makes another graph."""
    slopes = SLOPES[library] + 0
    program = gqa.trace(score_mod_of(slopes), mask_mod)
    given = tensors() if attend is gqa.torch.attention else packed()
    function = compiled(lambda *x, program: attend(*x, score_mod=program))
    before = attend(*given, score_mod=program)
    assert torch.equal(function(*given, program=program), before)
    assert torch.autograd.gradcheck(lambda *x: function(*x, program=program), given)
    slopes += 0.5
    after = function(*given, program=program)
    assert torch.equal(after, attend(*given, score_mod=program))
    assert not torch.equal(after, before)
    mask = gqa.trace(mask_mod=mask_mod)
    assert torch.equal(function(*given, program=mask), attend(*given, mask_mod=mask_mod))


def test_functions_break_graphs():
    score_mod, given = score_mod_of(SLOPES["PyTorch"]), tensors()

    def attend(*given):
        return gqa.torch.attention(*given, score_mod=score_mod, mask_mod=mask_mod)

    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"expected what gqa\.trace.* returned outside of it"):
        compiled(attend)(*given)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(attend, backend="aot_eager")(*given), attend(*given))


class Layer(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return gqa.torch.attention(q, k, v, **self.options)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    program = gqa.trace(score_mod_of(SLOPES["PyTorch"]), mask_mod)
    given = [x.detach() for x in tensors()]
    exported = torch.export.export(Layer(score_mod=program), tuple(given), strict=strict)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(*given), gqa.torch.attention(*given, score_mod=program))


def test_export_of_functions_and_numpys_arrays():
    given = [x.detach() for x in tensors()]
    functions = {"score_mod": score_mod_of(SLOPES["NumPy"]), "mask_mod": mask_mod}
    exported = torch.export.export(Layer(**functions), tuple(given), strict=False)
    assert torch.equal(exported.module()(*given), gqa.torch.attention(*given, **functions))
    program = gqa.trace(**functions)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="captured an array of NumPy, expected tensors"):
        torch.export.export(Layer(score_mod=program), tuple(given), strict=True)


def test_the_operators_are_sound():
    """By PyTorch's own checks."""
    program = gqa.trace(score_mod_of(SLOPES["PyTorch"]), mask_mod)
    settings = (None, None, False, None, None, None, 0.0, None, 1, program.text, list(program.arrays))
    torch.library.opcheck(
        torch.ops.gqa.attention.default, (*tensors(), None, None, None, None, None, "bhsd", *settings)
    )
    ends = torch.tensor([0, 4, 8]), torch.tensor([0, 5, 12])
    torch.library.opcheck(torch.ops.gqa.varlen_attention.default, (*packed(), *ends, None, *settings))
