"""How the schedule would serve many threads: python bench/schedule.py --threads 8 32 128

No machine at hand need have them. The tasks of each workload are those of csrc/schedule.cpp. What a task costs is
measured on one thread here: each workload's time for a score or a key, whichever its tasks are made of. So are the copy
of a state, which stands for storing and merging it, and the start of a parallel region. Threads then take the tasks in
order, one whenever they are free, as the driver's loop does. Memory is taken to be as fast for each thread as for one
alone: what the table shows is what is lost to the schedule, and only that.
"""

from __future__ import annotations

import argparse
import ctypes
import heapq
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gqa
from limits import compiler
from workloads import LLAMA, WORKLOADS, Workload

CSRC = Path(__file__).parent.parent / "csrc"
TILE_ROWS = {"avx512vnni": 32, "avx512": 32, "avx2": 16, "baseline": 8}


class TaskCost(ctypes.Structure):
    """As in schedule.cpp."""

    _fields_ = (
        ("scores", ctypes.c_double),
        ("keys", ctypes.c_double),
        ("unit", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("state_elements", ctypes.c_double),
    )
    scores: float
    keys: float
    unit: int
    parts: int
    state_elements: float


@dataclass(frozen=True)
class Batch:
    """Sequences of one call: queries and keys of each."""

    name: str
    heads: tuple[int, int, int]
    queries: list[int]
    keys: list[int]
    causal: bool

    @staticmethod
    def of(workload: Workload) -> Batch:
        n = workload.batch
        return Batch(workload.name, workload.heads, [workload.queries] * n, [workload.keys] * n, workload.causal)


UNEVEN = (
    Batch("decode one of 131072, 63 of 512", LLAMA, [1] * 64, [131072] + [512] * 63, False),
    Batch("prompts: one of 8192, 31 of 256", LLAMA, [8192] + [256] * 31, [8192] + [256] * 31, True),
)


def library(folder: Path) -> ctypes.CDLL:
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler found: set CXX")
    path = folder / "schedule.so"
    sources = [str(Path(__file__).with_suffix(".cpp")), str(CSRC / "schedule.cpp")]
    subprocess.run(
        [command, "-O2", "-std=c++17", "-shared", "-fPIC", "-fopenmp", *sources, "-o", str(path)], check=True
    )
    loaded = ctypes.CDLL(str(path))
    loaded.tasks_of.restype = ctypes.c_int64
    loaded.region_us.restype = ctypes.c_double
    return loaded


def tasks(core: ctypes.CDLL, batch: Batch, threads: int) -> tuple[list[TaskCost], int]:
    """The tasks in the order in which they are taken, and how many threads are started."""
    n = len(batch.queries)
    lists = [(ctypes.c_int64 * n)(*values) for values in (batch.queries, batch.keys)]
    query_heads, kv_heads, head_dim = batch.heads
    sizes = (ctypes.c_int64 * 4)(kv_heads, query_heads // kv_heads, head_dim, TILE_ROWS[gqa.info()["isa"]])
    started = ctypes.c_int()
    room = 0
    while True:
        costs = (TaskCost * room)()
        count = core.tasks_of(
            ctypes.c_int64(n), *lists, int(batch.causal), sizes, threads, costs, ctypes.c_int64(room),
            ctypes.byref(started),
        )  # fmt: skip
        if count <= room:
            return list(costs[:count]), started.value
        room = count


@dataclass(frozen=True)
class Rates:
    """Seconds, measured here on one thread."""

    score: float  # a score of one row and key, with its share of everything else
    key: float  # a key of a task of few rows, which reads it once for all of them
    element: float  # of a state: written once and read once
    region: float  # the start and end of a parallel region, for each doubling of its threads

    def of(self, task: TaskCost, rows: int) -> float:
        return max(task.scores * self.score, task.keys * self.key if rows < 24 else 0)


def measure(core: ctypes.CDLL, batch: Batch, region: float) -> Rates:
    """Times the call on one thread; sequences of different lengths by the ones they have most of."""
    rng = np.random.default_rng(0)
    query_heads, kv_heads, head_dim = batch.heads
    longest = min(max(batch.keys), 8192)
    queries = min(max(batch.queries), longest)
    q = rng.standard_normal((1, query_heads, queries, head_dim), np.float32)
    k, v = rng.standard_normal((2, 1, kv_heads, longest, head_dim), np.float32)
    seconds = timed(lambda: gqa.attention(q, k, v, causal=batch.causal, num_threads=1))
    one = Batch(batch.name, batch.heads, [queries], [longest], batch.causal)
    alone, _ = tasks(core, one, 1)
    state = np.ones(1 << 20, np.float32)
    target = np.empty_like(state)
    copy = timed(lambda: np.copyto(target, state))
    scores, keys = sum(x.scores for x in alone), sum(x.keys for x in alone)
    return Rates(seconds / scores, seconds / keys, 2 * copy / state.size, region)


def timed(run: Callable[[], Any]) -> float:
    """The median time of a call."""
    samples: list[float] = []
    end = time.perf_counter() + 0.1
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def finish_times(costs: list[TaskCost], threads: int, rates: Rates, rows: int) -> list[float]:
    """When each thread is done, from the start of the first."""
    free = [(rates.region * max(1, threads - 1).bit_length() if threads > 1 else 0.0, i) for i in range(threads)]
    done: dict[int, int] = {}
    for task in costs:  # whoever is free first takes the next one
        at, thread = heapq.heappop(free)
        at += rates.of(task, rows)
        if task.parts > 1:
            at += task.state_elements * rates.element
            done[task.unit] = done.get(task.unit, 0) + 1
            if done[task.unit] == task.parts:  # the last one merges them all
                at += task.parts * task.state_elements * rates.element
        heapq.heappush(free, (at, thread))
    return sorted(at for at, _ in free)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--only", default="", help="a regular expression for the names of workloads")
    options = parser.parse_args()
    left_out = ("cache", "cold", "overhead", "backward")
    kept = [w for w in WORKLOADS if w.dtype == "float32" and not any(getattr(w, name) for name in left_out)]
    batches = [Batch.of(w) for w in kept]
    with tempfile.TemporaryDirectory() as folder:
        core = library(Path(folder))
        region = core.region_us(2) * 1e-6
        print("Efficiency: the time of one thread, divided by the time of all of them together; in brackets how much")
        print("later the last thread ends than the average one.\n")
        print("| workload | " + " | ".join(f"{n} threads" for n in options.threads) + " |")
        print("| --- |" + " ---: |" * len(options.threads))
        for batch in [*batches, *UNEVEN]:
            if not re.search(options.only, batch.name):
                continue
            rates = measure(core, batch, region)
            rows = max(batch.queries) * batch.heads[0] // batch.heads[1]
            alone = finish_times(tasks(core, batch, 1)[0], 1, rates, rows)[0]
            cells = []
            for threads in options.threads:
                ends = finish_times(*tasks(core, batch, threads), rates, rows)
                late = ends[-1] / statistics.mean(ends) - 1
                cells.append(f"{alone / (threads * ends[-1]):.0%} (+{late:.0%})")
            heads = "/".join(map(str, batch.heads))
            name = batch.name if heads in batch.name else f"{batch.name} {heads}"
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
