"""Strong scaling of gqa.distributed on the ranks of one job, and what its messages cost.

    mpiexec -n 2 python -m mpi4py bench/distributed.py --out scaling.json

One thread each. Rank 0 alone (the others sleep), all ranks together, and all ranks each with the whole problem (busy:
what the machine's memory and clock leave to each) take turns, so that speedups are ratios within one run; numbers are
medians. Decode steps are of one token, with 32 query and 8 KV heads of 128 channels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import gqa
import gqa.distributed
from gqa.options import Options
from gqa.sequences import table
from gqa.subtrees import MERGE_COLUMNS, SUBTREE_COLUMNS, merge_subtrees, state_shape

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
COMM = MPI.COMM_WORLD


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wait_asleep() -> None:
    """A barrier that leaves the processor to others."""
    request = COMM.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


SWEPT = np.ones(1 << 24, np.float32)  # more than the caches that belong to one processor


def cold() -> None:
    """Let the processor's caches hold something else, as the rest of a model's layer does."""
    SWEPT.sum()


def alone(work: Callable[[], Any]) -> float:
    """The time of work on rank 0 while the others sleep."""
    took = 0.0
    if COMM.rank == 0:
        cold()
        took = seconds(work)
    wait_asleep()
    return took


def together(work: Callable[[], Any]) -> float:
    """The time of work on all ranks."""
    cold()
    COMM.Barrier()
    return seconds(work)


def turns(rounds: int, **works: tuple[Callable[..., float], Callable[[], Any]]) -> dict[str, float]:
    """The median time of each, in turns, and the best; and how many times as fast as the others all ranks together are,
    the median of what the rounds say, whatever becomes of the machine's speed meanwhile.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for i in range(rounds):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]  # none is always behind the same other
            how, work = works[name]
            wait_asleep()
            taken[name].append(how(work))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    if COMM.rank == 0:
        medians |= {f"best {name}": min(times) for name, times in taken.items()}
        for name in names:
            medians[f"{name} : all"] = statistics.median(x / y for x, y in zip(taken[name], taken["all"]))
    return medians


def filled(cache: Any, keys: int) -> Any:
    """A cache of so many tokens, the same thousand again and again."""
    k, v = np.random.default_rng(1).standard_normal((2, 1, KV_HEADS, 1024, HEAD_DIM), np.float32)
    for _ in range(keys // 1024):
        cache.append(k, v)
    return cache


def decode(keys: int, rounds: int, dtype: str) -> dict[str, float]:
    """A step over so many keys: the local cache and one rank's on rank 0, all ranks, and a local cache on each."""
    sizes = (1, KV_HEADS, keys, HEAD_DIM)
    q = np.random.default_rng(0).standard_normal((1, Q_HEADS, 1, HEAD_DIM), np.float32)
    shared = filled(gqa.distributed.ShardedKVCache(COMM, *sizes, dtype=dtype), keys)
    whole = filled(gqa.KVCache(*sizes, dtype=dtype), keys)
    local = single = shared
    if COMM.rank == 0:
        local = filled(gqa.KVCache(*sizes, dtype=dtype), keys)
        single = filled(gqa.distributed.ShardedKVCache(MPI.COMM_SELF, *sizes, dtype=dtype), keys)
        assert (local.attend(q) == single.attend(q)).all()
    wait_asleep()
    out = shared.attend(q)
    assert COMM.rank or (out == local.attend(q)).all()
    return turns(
        rounds, local=(alone, lambda: local.attend(q)), one=(alone, lambda: single.attend(q)),
        all=(together, lambda: shared.attend(q)), busy=(together, lambda: whole.attend(q)),
    )  # fmt: skip


def prompt(tokens: int, rounds: int) -> dict[str, float]:
    """A causal prompt: one machine's attention on rank 0, all ranks, and one machine's attention on each."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, Q_HEADS, tokens, HEAD_DIM), np.float32)
    k, v = rng.standard_normal((2, 1, KV_HEADS, tokens, HEAD_DIM), np.float32)
    own = gqa.distributed.zigzag(tokens, COMM)
    own_q, own_k, own_v = (np.ascontiguousarray(x[:, :, own]) for x in (q, k, v))
    everything = np.arange(tokens)
    return turns(
        rounds, local=(alone, lambda: gqa.attention(q, k, v, causal=True)),
        threads=(alone, lambda: gqa.attention(q, k, v, causal=True, num_threads=COMM.size)),
        one=(alone, lambda: gqa.distributed.attention(q, k, v, MPI.COMM_SELF, positions=everything, causal=True)),
        all=(together, lambda: gqa.distributed.attention(own_q, own_k, own_v, COMM, positions=own, causal=True)),
        busy=(together, lambda: gqa.attention(q, k, v, causal=True)),
    )  # fmt: skip


def gradients(tokens: int, rounds: int) -> dict[str, float]:
    """Those of a causal prompt: one machine's on rank 0, and all ranks."""
    rng = np.random.default_rng(0)
    dout, q = rng.standard_normal((2, 1, Q_HEADS, tokens, HEAD_DIM), np.float32)
    k, v = rng.standard_normal((2, 1, KV_HEADS, tokens, HEAD_DIM), np.float32)
    out, lse = gqa.attention(q, k, v, causal=True, return_lse=True)
    own = gqa.distributed.zigzag(tokens, COMM)
    some = (np.ascontiguousarray(x[:, :, own]) for x in (dout, q, k, v, out, lse))
    own_dout, own_q, own_k, own_v, own_out, own_lse = some
    vjp = partial(gqa.attention_vjp, dout, q, k, v, out, lse, causal=True)
    shared = partial(
        gqa.distributed.attention_vjp, own_dout, own_q, own_k, own_v, own_out, own_lse, COMM, positions=own, causal=True
    )
    return turns(
        rounds, local=(alone, vjp), threads=(alone, partial(vjp, num_threads=COMM.size)), all=(together, shared),
        busy=(together, vjp),
    )  # fmt: skip


def again(rounds: int, work: Callable[[], Any]) -> float:
    """The median time of work that is repeated, on all ranks."""
    times = []
    for _ in range(rounds):
        COMM.Barrier()
        times.append(seconds(work))
    return statistics.median(times)


def messages(rounds: int) -> dict[str, float]:
    """Allgather of so many bytes from each rank."""
    times = {}
    for size in (16, 1 << 14, 1 << 17, 1 << 20):
        sent, received = np.zeros(size, np.uint8), np.zeros(size * COMM.size, np.uint8)
        times[str(size)] = again(rounds, partial(COMM.Allgather, sent, received))
    return times


def merging(rounds: int) -> float:
    """Bytes of states a second that a rank merges."""
    blocks = 64
    states = np.random.default_rng(0).random(state_shape(blocks, Q_HEADS, 1, HEAD_DIM), np.float32)
    q = np.zeros((1, Q_HEADS, 1, HEAD_DIM), np.float32)
    merges = table([(0, 0, 1, 0, 0, blocks)], MERGE_COLUMNS)
    numbers = table([(i, i) for i in range(blocks)], SUBTREE_COLUMNS)
    work = partial(merge_subtrees, q, KV_HEADS, states, merges, numbers, Options())
    return states.nbytes / again(rounds, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="*", default=[4096, 32768, 262144], help="of decode steps")
    parser.add_argument("--tokens", type=int, nargs="*", default=[8192], help="of prompts")
    parser.add_argument("--gradients", type=int, nargs="*", default=[4096], help="of prompts of so many tokens")
    parser.add_argument("--dtype", default="float16", help="of the caches")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    args = parser.parse_args()
    gqa.set_num_threads(1)
    results: dict[str, Any] = {"ranks": COMM.size, "dtype": args.dtype, "messages": messages(30 * args.rounds)}
    results["merging"] = merging(10 * args.rounds)
    for keys in args.keys:
        rounds = args.rounds * max(1, min(20, 65536 // keys))
        results[f"decode {keys}"] = decode(keys, rounds, args.dtype)
    for tokens in args.tokens:
        results[f"prompt {tokens}"] = prompt(tokens, max(3, args.rounds // 3))
    for tokens in args.gradients:
        results[f"gradients {tokens}"] = gradients(tokens, max(3, args.rounds // 3))
    if COMM.rank == 0:
        for name, times in results.items():
            print(name, times)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
