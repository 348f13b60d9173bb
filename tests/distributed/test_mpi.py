"""Ranks that are processes, started by mpiexec of the package mpich: bits, errors, and ranks that die."""

import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from child import PATHS

MPIEXEC = Path(sysconfig.get_path("scripts"), "mpiexec")
RANKS = [1, 2, 3, 4, 8]
FOR_EVER = 300  # seconds after which ranks that wait for each other are no longer waited for

pytest.importorskip("mpi4py", reason="needs mpi4py: pip install 'gqa[mpi]'")
pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason="needs the package mpich: pip install 'gqa[mpi]'")

START = """
import os, signal, sys
import numpy as np
from mpi4py import MPI
import gqa, gqa.distributed
from compare import assert_same_bits

comm, PIECE = MPI.COMM_WORLD, gqa.SPLIT_KEYS
gqa.set_num_threads(1)

def say(text):  # a line that those of other ranks do not cut
    os.write(1, f"{text}\\n".encode())
"""


def start(ranks, code):
    """Runs code on so many ranks; an error on one of them ends the job, as with `python -m mpi4py`."""
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-c", START + textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=FOR_EVER,
    )  # fmt: skip


def output_of(ranks, code):
    result = start(ranks, code)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


CACHE = """
rng = np.random.default_rng({seed})
dtype, window = rng.choice(["float32", "float16", "int8"]), rng.choice([0, 50, PIECE + 100])
kv_heads, group, batch = rng.integers(1, 3), rng.integers(1, 5), rng.integers(1, 3)
options = dict(dtype=str(dtype), window=int(window) or None)
sizes = (int(batch), int(kv_heads), 4 * PIECE if not window else int(window) + int(rng.integers(200)), 8)
local, sharded = gqa.KVCache(*sizes, **options), gqa.distributed.ShardedKVCache(comm, *sizes, **options)
for tokens in (PIECE - 2, 1, 1, 1, 40, 2 * PIECE + 5, 7):
    k, v = rng.standard_normal((2, batch, kv_heads, tokens, 8), np.float32)
    q = rng.standard_normal((batch, kv_heads * group, min(tokens, 50), 8), np.float32)
    lengths = rng.integers(tokens // 2, tokens + 1, batch)
    calls = dict(lengths=lengths, return_lse=True, softcap=float(rng.choice([0, 3])))
    for one, other in zip(local.attend(q, k, v, **calls), sharded.attend(q, k, v, **calls)):
        assert_same_bits(one, other)
say("same bits")
"""

PROMPT = """
rng = np.random.default_rng({seed})
for length in (300, 2 * PIECE + 700):
    q = rng.standard_normal((1, 4, length, 4), np.float32)
    k, v = rng.standard_normal((2, 1, 2, length, 4), np.float32)
    options = dict(causal=bool(rng.integers(2)), window=(PIECE // 2, 30))
    own = gqa.distributed.zigzag(length, comm)
    out = gqa.distributed.attention(q[:, :, own], k[:, :, own], v[:, :, own], comm, positions=own, **options)
    assert_same_bits(out, gqa.attention(q, k, v, **options)[:, :, own].copy())
say("same bits")
"""

GRADIENTS = """
rng = np.random.default_rng({seed})
for length, kv_heads, dtype in ((300, 3, "float32"), (2500, 2, "float16"), (5, 1, "float64")):
    dout, q = rng.standard_normal((2, 2, 6, length, 5)).astype(dtype)
    k, v = rng.standard_normal((2, 2, kv_heads, length, 5)).astype(dtype)
    options = dict(causal=bool(rng.integers(2)), softcap=3.0, sinks=np.arange(6.0) if length < 9 else None)
    own = gqa.distributed.zigzag(length, comm)
    some = [x[:, :, own] for x in (q, k, v)]
    out, lse = gqa.distributed.attention(*some, comm, positions=own, return_lse=True, **options)
    got = gqa.distributed.attention_vjp(dout[:, :, own], *some, out, lse, comm, positions=own, **options)
    want = gqa.attention_vjp(dout, q, k, v, *gqa.attention(q, k, v, return_lse=True, **options), **options)
    for one, other in zip(got[:3], want):
        assert_same_bits(one, other[:, :, own].copy())
    if length < 9:
        assert_same_bits(got.dsinks, want.dsinks)
say("same bits")
"""


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("code", [CACHE, PROMPT, GRADIENTS], ids=["cache", "prompt", "gradients"])
def test_bits_of_one_process(ranks, code):
    assert output_of(ranks, code.format(seed=ranks)) == "same bits\n" * ranks


def test_an_error_on_one_rank_is_raised_on_all():
    """And they go on together."""
    code = """
        cache = gqa.distributed.ShardedKVCache(comm, 1, 1, 10, 8)
        x = np.zeros((1, 1, 2, 8), np.float32)
        try:
            cache.attend(x, x, x[:, :, : 2 - (comm.rank == 1)])
        except ValueError as error:
            message = str(error)
        cache.attend(x, x, x)
        assert cache.lengths == [2]
        say(message)
    """
    lines = output_of(3, code).splitlines()
    assert lines == ["v has shape (1, 1, 1, 8), expected (1, 1, 2, 8) (on rank 1 of 3)"] * 3


def test_an_intercommunicator():
    code = """
        half = comm.Split(comm.rank % 2)
        inter = half.Create_intercomm(0, comm, 1 - comm.rank % 2)
        for call in (gqa.distributed.ShardedKVCache, gqa.distributed.zigzag):
            try:
                call(*((inter, 1, 1, 1, 1) if call is gqa.distributed.ShardedKVCache else (1, inter)))
            except ValueError as error:
                say(error)
    """
    assert output_of(2, code).splitlines() == ["comm is an intercommunicator, expected an intracommunicator"] * 4


def test_an_error_of_the_program_ends_the_job():
    code = """
        cache = gqa.distributed.ShardedKVCache(comm, 1, 1, 10, 8)
        if comm.rank == 1:
            raise KeyError("a mistake between calls")
        cache.reset()
    """
    result = start(2, code)
    assert result.returncode != 0
    assert "a mistake between calls" in result.stderr


def test_a_rank_that_dies_ends_the_job():
    """Killed in the middle of a step: while it computes, so that the others wait for its states."""
    code = """
        cache = gqa.distributed.ShardedKVCache(comm, 1, 1, 4 * PIECE, 8)
        x = np.zeros((1, 1, 3 * PIECE, 8), np.float32)
        cache.append(x, x)
        if comm.rank == 1:
            from gqa import _core
            _core.begin_attend = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        cache.attend(x[:, :, :1])
        say("not reached")
    """
    result = start(2, code)
    assert result.returncode != 0
    assert "not reached" not in result.stdout
    assert "KILLED BY SIGNAL: 9" in result.stdout + result.stderr or result.returncode in (9, 137, -signal.SIGKILL)
