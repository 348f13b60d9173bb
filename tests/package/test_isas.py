"""Instruction sets: the best one that the machine has, or the one that is asked for, and that it is what runs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cases
import gqa
from child import PARALLEL, output_of, start
from gqa import _core


def bits_with(isa):
    """The set that says it ran, and what it computed with channels in the lanes and with rows in the lanes."""
    return output_of(
        f"""{PARALLEL}
import hashlib
few, many = gqa.attention(q[:, :1, :1], k, v), gqa.attention(np.repeat(q, 5, axis=2), k, v)
print(gqa.info()["isa"], hashlib.sha256(few).hexdigest(), hashlib.sha256(many).hexdigest())
""",
        GQA_ISA=isa,
    ).split()


def test_the_forced_instruction_set_runs():
    """Each adds in an order of its own, so the last bits tell which one ran."""
    isas = _core.available_isas()
    assert isas[-1] == "baseline"
    results = {isa: bits_with(isa) for isa in isas}
    assert [name for name, _, _ in results.values()] == isas
    assert len({few for _, few, _ in results.values()}) == len(set(isas) - {"avx512vnni"})  # which adds integers
    assert bits_with("") == results[isas[0]]
    if "avx2" in isas:
        assert results["avx2"][2] != results["baseline"][2]  # fused products, and separate ones


def test_the_instruction_set_can_be_changed(isa):
    assert _core.isa() == isa
    assert gqa.info()["isa"] == isa
    assert isa in gqa.info()["isas"]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "native", "avx2,baseline", "avx512vnni", "avx512", "avx2"])
def test_an_unknown_or_unsupported_instruction_set_is_an_error(name):
    if name in _core.available_isas():
        pytest.skip("this machine has it")
    result = start("import gqa", GQA_ISA=name)
    assert result.returncode == 1
    available = ", ".join(_core.available_isas())
    assert f"ValueError: GQA_ISA is '{name}'; available on this machine: {available}" in result.stderr


def test_extended_precision_is_left_intact(isa, dtype, rng):
    """Its registers are those of MMX, which code for 8-byte vectors can leave unusable until they are cleared."""
    for queries in (1, 40):
        q, k, v = rng.standard_normal((3, 1, 2, queries, 21)).astype(dtype)
        gqa.attention(q, k, v, causal=True, softcap=2.0)
        assert (np.arange(16, dtype=np.float32).astype(np.longdouble).sum()) == 120


def test_info():
    info = gqa.info()
    assert set(info) == {"version", "isa", "isas", "threads", "openmp"}
    assert info["version"] == gqa.__version__
    assert info["isas"] == _core.available_isas()
    assert isinstance(info["openmp"], bool)


def test_a_change_of_instruction_set_during_calls():
    """Each call is computed by one of them alone."""
    arguments = cases.LONG[2].arguments(np.float32)
    isas, before = _core.available_isas(), _core.isa()
    expected = set()
    try:
        for isa in isas:
            _core.use_isa(isa)
            expected.add(gqa.attention(**arguments).tobytes())
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(gqa.attention, **arguments, num_threads=2) for _ in range(50)]
            for i in range(50):
                _core.use_isa(isas[i % len(isas)])
            assert {call.result().tobytes() for call in calls} <= expected
    finally:
        _core.use_isa(before)


def test_an_unknown_name_changes_nothing():
    before = _core.isa()
    for name in ("", "sse9", "AVX2", "avx2 ", "a" * 10000):
        with pytest.raises(ValueError, match=r"available on this machine: .*baseline"):
            _core.use_isa(name)
    assert _core.isa() == before
