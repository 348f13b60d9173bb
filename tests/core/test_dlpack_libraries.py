"""PyTorch's and JAX's tensors are read in place, bfloat16 included, by gqa that imports neither."""

import sys

import ml_dtypes
import numpy as np
import pytest

import gqa
from child import output_of
from compare import assert_same_bits
from gqa import _core


def test_torch():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        q, k, v = (torch.randn(2, heads, 9, 16, generator=generator).to(dtype) for heads in (4, 2, 2))
        arrays = [_core.as_array("x", x) for x in (q, k, v)]
        expected = gqa.attention(*arrays)
        assert_same_bits(gqa.attention(q, k, v), expected)
        out = torch.zeros(q.shape, dtype=dtype)
        assert gqa.attention(q, k, v, out=out) is out
        assert_same_bits(_core.as_array("out", out), expected)
        lengths = torch.tensor([3, 9])
        masks = torch.ones(9, 9, dtype=torch.bool).tril()
        assert_same_bits(
            gqa.attention(q, k, v, kv_lengths=lengths, mask=masks),
            gqa.attention(*arrays, kv_lengths=[3, 9], mask=masks.numpy()),
        )
    for name, wrong, message in (
        ("q", q.clone().requires_grad_(), "q, a Tensor, .* while it requires a gradient .call its detach"),
        ("k", k.to("meta"), "k, a Tensor, does not give its memory to others"),
        ("v", torch.complex(v, v).conj().imag, "v, a Tensor, .*resolve_neg"),
        ("k", k.to_sparse(), "k, a Tensor, .*strided"),
    ):
        with pytest.raises(ValueError, match=message):
            gqa.attention(**{"q": q, "k": k, "v": v} | {name: wrong})


def test_pytorchs_tensors_are_read_without_python(monkeypatch):
    """By functions of C that their type has; no reference to their memory is lost."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no such functions")
    monkeypatch.setattr(torch.Tensor, "__dlpack__", None)
    tensors = [torch.randn(1, heads, 9, 16).transpose(1, 2) for heads in (4, 2, 2)]
    counts = [torch._C._storage_Use_Count(x.untyped_storage()._cdata) for x in tensors]
    expected = gqa.attention(*(x.numpy() for x in tensors), layout="bshd")
    for _ in range(5):
        assert_same_bits(gqa.attention(*tensors, layout="bshd"), expected)
    assert [torch._C._storage_Use_Count(x.untyped_storage()._cdata) for x in tensors] == counts
    array = _core.as_array("x", tensors[0])
    expected = tensors.pop(0).numpy().copy()
    assert_same_bits(array, expected)
    with pytest.raises(ValueError, match=r"q, a Parameter, does not give its memory"):  # a subclass: asked in Python
        gqa.attention(torch.nn.Parameter(tensors[0], requires_grad=False), *tensors)


def test_a_tensor_without_memory():
    torch = pytest.importorskip("torch")
    with torch._subclasses.FakeTensorMode():
        q = torch.zeros(2, 4, 3, 8)
    x = np.zeros((2, 4, 3, 8), np.float32)
    with (
        pytest.warns(UserWarning, match="FakeTensor"),
        pytest.raises(ValueError, match=r"q, a FakeTensor, .* no memory"),
    ):
        gqa.attention(q, x, x)


def test_jax():
    jax = pytest.importorskip("jax")
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 2, 9, 16))
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32):
        arrays = [x.astype(dtype) for x in (q, k, v)]
        tensors = [jax.numpy.asarray(x) for x in arrays]
        assert_same_bits(gqa.attention(*tensors), gqa.attention(*arrays))
        with pytest.raises(ValueError, match="out is read-only"):
            gqa.attention(*tensors, out=tensors[0])


MAKE = {
    "torch": "import torch; ones = lambda *shape: torch.ones(shape, dtype=torch.bfloat16)",
    "jax": "import jax.numpy as jnp; ones = lambda *shape: jnp.ones(shape, jnp.bfloat16)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("library", MAKE)
def test_peak_memory(library):
    """Nothing is copied: 64 MiB of keys and 4 of queries, in a fresh process whose peak is counted from the call on."""
    pytest.importorskip(library)
    printed = output_of(
        f"""
        import re
        import numpy as np, gqa
        {MAKE[library]}

        def bytes_of(field):
            return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

        q, k = ones(1, 8, 4096, 64), ones(1, 4, 2**17, 64)
        gqa.attention(np.ones((1, 2, 300, 64), np.float32), *[np.ones((1, 2, 300, 64), np.float32)] * 2, num_threads=2)
        gqa.attention(q[:, :, :1], k[:, :, :2], k[:, :, :2])
        open("/proc/self/clear_refs", "w").write("5")
        before = bytes_of("VmRSS")
        out = gqa.attention(q, k, k, window=(0, 0), num_threads=2)
        print(bytes_of("VmHWM") - before - out.nbytes)
        """
    )
    assert int(printed.splitlines()[-1]) < 24 * 2**20


def test_nothing_is_imported():
    code = "import sys, gqa; print([name for name in ('torch', 'jax', 'jaxlib', 'ml_dtypes') if name in sys.modules])"
    assert output_of(code) == "[]"
