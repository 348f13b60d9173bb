"""``python -m gqa``: what it prints, and that its self-check and its two definitions of attention are right."""

import re

import numpy as np
import pytest

import gqa
import gqa.__main__ as command
import oracle
from compare import assert_close


@pytest.fixture
def small(monkeypatch):
    """A layer and a self-check that take no time."""
    for name, value in (("HEADS", 4), ("KV_HEADS", 2), ("HEAD_DIM", 8), ("PROMPT", 16), ("CACHE", 40)):
        monkeypatch.setattr(command, name, value)
    monkeypatch.setattr(command, "CHECKS", command.CHECKS[:3])
    monkeypatch.setattr(command.median_time, "__defaults__", (0.0,))


@pytest.mark.usefixtures("small")
def test_the_report(capsys):
    assert command.main([]) == 0
    build, check, empty, layer, header, prefill, decode = capsys.readouterr().out.splitlines()
    about = gqa.info()
    assert build.startswith(f"gqa {about['version']}: {about['isa']} of ")
    assert build.endswith("OpenMP" if about["openmp"] else "no OpenMP: one thread unless told otherwise")
    assert check.startswith("self-check against float64: passed, max error float32 ")
    assert empty == ""
    assert "4 query heads, 2 KV heads, head_dim 8, float32" in layer
    assert header.split() == ["gqa", "max", "error", "NumPy"]
    for line, name in ((prefill, "prefill of 16 tokens"), (decode, "decode over 40 keys")):
        row = re.match(
            rf"{name} +[\d.]+ ms +[\d.]+ GFLOP/s +[\d.]+ GB/s +(\S+) +[\d.]+ ms  \([\d.]+ times as long\)$", line
        )
        assert float(row[1]) < 2e-6


@pytest.mark.usefixtures("small")
def test_a_wrong_result_fails_the_self_check(capsys, monkeypatch):
    attention = gqa.attention
    monkeypatch.setattr(gqa, "attention", lambda *args, **options: attention(*args, **options) + np.float16(0.01))
    assert command.main([]) == 1
    assert "self-check against float64: FAILED, max error float32 1.0e-02" in capsys.readouterr().out


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (5, 9), (9, 5)])
def test_the_definitions(rng, queries, keys):
    q = rng.standard_normal((2, 6, queries, 8), np.float32)
    k, v = rng.standard_normal((2, 2, 3, keys, 8), np.float32)
    expected, _ = oracle.attention(q, k, v, causal=True)
    assert_close(command.definition(q, k, v, True), expected)
    assert_close(command.definition(q, k, v, False), oracle.attention(q, k, v)[0])
    if queries <= keys:
        assert_close(command.plain_numpy(q, k, v), expected)


def test_the_median_of_several_times():
    calls = []
    assert command.median_time(lambda: calls.append(1), seconds=0.0) >= 0
    assert len(calls) == 4  # the first does not count
