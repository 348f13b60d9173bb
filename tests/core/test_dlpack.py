"""Tensors of other libraries, by __dlpack__: the bits of NumPy arrays, in place; what cannot be read is refused."""

import gc
import sys

import ml_dtypes
import numpy as np
import pytest

import cases
import gqa
from child import output_of
from compare import assert_same_bits
from dlpack_producer import Producer
from gqa import _core

BFLOAT16 = ml_dtypes.bfloat16
NAMES = (*cases.TENSORS, "mask", "sinks")
CASE = cases.Case(queries=3, keys=50, options=("past", "float_mask", "sinks", "lengths"))


@pytest.fixture(params=[True, False], ids=["version 1", "before version 1"])
def versioned(request):
    return request.param


def producers(arguments, **options):
    return {name: Producer(x, **options) for name, x in arguments.items() if name in NAMES}


def test_the_bits_of_arrays(dtype, versioned):
    for layout in ("bhsd", "bshd"):
        arguments = CASE.arguments(dtype, layout)
        tensors = producers(arguments, versioned=versioned)
        assert_same_bits(gqa.attention(**arguments | tensors), gqa.attention(**arguments))
        assert all(x.is_given_back() and len(x.capsules) == 1 for x in tensors.values())


@pytest.mark.parametrize("changes", [{"no_strides": True}, {"read_only": True}], ids=str)
def test_inputs_without_strides_and_read_only(changes, dtype):
    arguments = CASE.arguments(dtype)
    tensors = producers(arguments, **changes)
    assert_same_bits(gqa.attention(**arguments | tensors), gqa.attention(**arguments))


def test_a_tensor_within_other_memory(dtype):
    arguments = CASE.arguments(dtype)
    k = arguments["k"]
    memory = np.concatenate([np.zeros(7, dtype), k.ravel()])
    moved = Producer(memory[7:].reshape(k.shape), data=memory.ctypes.data, byte_offset=7 * k.itemsize)
    assert_same_bits(gqa.attention(**arguments | {"k": moved}), gqa.attention(**arguments))


@pytest.mark.parametrize(
    "way",
    [lambda x: x[..., ::-1], lambda x: x[:, :, ::-1], lambda x: x.swapaxes(2, 3)],
    ids=["channels", "tokens", "axes"],
)
def test_any_strides(dtype, way):
    """A last axis that is not contiguous is copied, of bfloat16 as well; others are read backwards."""
    arguments = CASE.arguments(dtype)
    tensors = {name: Producer(way(np.ascontiguousarray(way(arguments[name])))) for name in cases.TENSORS}
    assert_same_bits(gqa.attention(**arguments | tensors), gqa.attention(**arguments))


def test_an_output(dtype):
    arguments = CASE.arguments(dtype)
    expected = gqa.attention(**arguments)
    memory = np.zeros_like(expected)
    out = Producer(memory)
    assert gqa.attention(**arguments, out=out) is out
    assert_same_bits(memory, expected)
    assert out.is_given_back()
    for wrong in (Producer(memory, read_only=True), Producer(memory, versioned=False)):
        with pytest.raises(ValueError, match="out is read-only"):
            gqa.attention(**arguments, out=wrong)
        assert wrong.is_given_back()
    with pytest.raises(ValueError, match="out overlaps q in memory"):
        gqa.attention(**arguments | {"q": Producer(memory[..., :16])}, out=memory)


def test_quantised_tensors(rng):
    q, x = rng.standard_normal((2, 1, 2, 5, 16)).astype(np.float32)
    plain = gqa.quantize(x)
    tensors = Producer(plain.data), Producer(plain.scale)
    quantized = gqa.Quantized(*tensors)
    assert_same_bits(gqa.attention(q, quantized, quantized), gqa.attention(q, plain, plain))
    assert not tensors[0].is_given_back()
    del quantized
    assert all(x.is_given_back() for x in tensors)


def test_memory_is_given_back_after_an_error(versioned):
    arguments = CASE.arguments(np.float32)
    tensors = producers(arguments, versioned=versioned)
    with pytest.raises(ValueError, match="scale is nan"):
        gqa.attention(**arguments | tensors | {"scale": np.nan})
    with pytest.raises(ValueError, match="v has 2 tokens"):
        gqa.attention(**arguments | tensors | {"v": arguments["v"][:, :, :2]})
    assert all(x.is_given_back() for x in tensors.values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": (2, 1)}, ValueError, "q is on the device cuda:1, expected the CPU"),
        ({"device": (99, 0)}, ValueError, "q is on the device DLPack device 99:0"),
        ({"device_type": 2}, ValueError, "q is on the device cuda:0"),
        ({"lanes": 4}, TypeError, "q has dtype float32x4, expected float32, float64, float16, bfloat16"),
        ({"code": 0}, TypeError, "q has dtype int32"),
        ({"code": 5, "bits": 64}, TypeError, "q has dtype complex64"),
        ({"code": 10, "bits": 8}, TypeError, "q has dtype float8"),
        ({"code": 200}, TypeError, "q has dtype DLPack type 200"),
        ({"ndim": 2}, ValueError, r"q has shape \(2, 4\), expected \(batch, heads"),
        ({"data": None}, ValueError, "q, a Producer, does not give its memory to others: it has no memory"),
        ({"major": 2}, ValueError, "q, a Producer, does not give its memory to others: DLPack version 2"),
    ],
    ids=str,
)
def test_refused_tensors(changes, error, message):
    arguments = CASE.arguments(np.float32)
    q = Producer(arguments["q"], **changes)
    with pytest.raises(error, match=message):
        gqa.attention(**arguments | {"q": q})
    assert q.is_given_back()


def test_refused_masks_and_sinks():
    arguments = CASE.arguments(np.float32)
    with pytest.raises(TypeError, match="mask has dtype uint8, expected bool, float32"):
        gqa.attention(**arguments | {"mask": Producer(np.ones((3, 50), np.uint8))})
    with pytest.raises(TypeError, match="sinks has dtype bool"):
        gqa.attention(**arguments | {"sinks": Producer(np.ones(4, bool))})
    with pytest.raises(TypeError, match=r"k has dtype int8, expected .*gqa\.Quantized"):
        gqa.attention(**arguments | {"k": Producer(np.ones((2, 2, 25, 16), np.int8))})


def test_what_a_producer_raises_is_the_cause():
    class Broken(Producer):
        def __dlpack__(self, **options):
            raise BufferError("not today")

    class Interrupted(Producer):
        def __dlpack_device__(self):
            raise KeyboardInterrupt

    arguments = CASE.arguments(np.float32)
    with pytest.raises(ValueError, match="k, a Broken, does not give its memory to others: not today") as caught:
        gqa.attention(**arguments | {"k": Broken(arguments["k"])})
    assert isinstance(caught.value.__cause__, BufferError)
    with pytest.raises(KeyboardInterrupt):
        gqa.attention(**arguments | {"k": Interrupted(arguments["k"])})


def test_other_functions(rng):
    """What is written in Python sees arrays: views of the tensors."""
    q, k, v = (x[0] for x in cases.tensors(rng, 5, 5, BFLOAT16, batch=1, heads=(2, 2), head_dim=8, v_head_dim=8))
    p, r, s = map(Producer, (q, k, v))
    assert_same_bits(gqa.varlen_attention(p, r, s, [0, 2], [0, 2]), gqa.varlen_attention(q, k, v, [0, 2], [0, 2]))
    caches = [gqa.KVCache(1, 2, 16, 8, dtype="bfloat16") for _ in range(2)]
    steps = (Producer(q[None]), Producer(k[None]), Producer(v[None])), (q[None], k[None], v[None])
    assert_same_bits(*(cache.attend(*step) for cache, step in zip(caches, steps)))
    pages = [gqa.PagedKVCache(4, 4, 2, 8, dtype="bfloat16") for _ in range(2)]
    steps = tuple(tuple(x.swapaxes(0, 1) for x in (q, k, v)) for _ in range(2))
    steps = (tuple(map(Producer, steps[0])), steps[1])
    assert_same_bits(*(x.attend([x.add()], step[0], [5], *step[1:]) for x, step in zip(pages, steps)))
    tables = gqa.rotary_tables(8, 8)
    assert_same_bits(gqa.rotary(p, *map(Producer, tables)), gqa.rotary(q, *tables))
    assert_same_bits(gqa.quantize(p).data, gqa.quantize(q).data)
    for tensor in (p, r, s):
        assert tensor.is_given_back()


def test_an_array_of_a_tensor_keeps_it_alive():
    tensor = Producer(np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1], read_only=True)
    x = _core.as_array("x", tensor)
    assert x.tolist() == [[2, 1, 0], [5, 4, 3]]
    assert not x.flags.writeable
    y = x[1:]
    del x
    assert tensor.deleted == 0
    del y
    assert tensor.is_given_back()


def test_bfloat16_without_ml_dtypes():
    """Read all the same; only a result of bfloat16 needs the package, and says so before it is computed."""
    done = output_of(
        """
        import sys
        sys.modules["ml_dtypes"] = None  # an import of it fails
        import numpy as np
        import gqa
        from dlpack_producer import Producer

        def half(*shape):
            return Producer(np.full(shape, 0x3F80, np.uint16), code=4)  # 1.0

        q, k = half(1, 2, 3, 8), half(1, 2, 5, 8)
        out = np.zeros((1, 2, 3, 8), np.uint16)
        gqa.attention(q, k, k, out=Producer(out, code=4))
        assert (out == 0x3F80).all()
        assert (gqa.attention(q, k, k, out_dtype="float32") == 1).all()
        assert (gqa.attention(np.ones((1, 2, 3, 8), np.float32), k, k) == 1).all()
        try:
            gqa.attention(q, k, k)
        except ModuleNotFoundError as error:
            print(error)
        assert all(x.is_given_back() for x in (q, k))
        """
    )
    assert done == "bfloat16 needs the package ml_dtypes: pip install 'gqa[bfloat16]'"


def test_no_reference_is_lost():
    arguments = CASE.arguments(np.float32)
    tensors = producers(arguments)
    gqa.attention(**arguments | tensors)
    for x in tensors.values():
        x.alive.clear()  # what was handed out holds its producer
    counts = [sys.getrefcount(x) for x in tensors.values()]
    for _ in range(20):
        gqa.attention(**arguments | tensors)
        for x in tensors.values():
            x.alive.clear()
    gc.collect()
    assert [sys.getrefcount(x) for x in tensors.values()] == counts
