"""Measures workloads in this process, one JSON line for each. Started by run.py, which sets threads and CPUs before."""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import gqa
from limits import Limits
from peers import PEERS, Call, Unsupported
from workloads import WORKLOADS, Workload, error

T = TypeVar("T")
PAUSE = 0.01  # seconds before a peer's turn, for the threads of the one before to fall asleep
SAMPLE = 2e-4  # seconds: quicker calls are timed several at once
CALM = 0.85  # of the best multiply-add rate seen: below it, something shares the core
LOST = 0.05  # of the time, spent waiting for a CPU: above it, something else is running on ours
TRIES = 2  # for a calm turn

now = time.perf_counter


class Contestant:
    """One peer on one workload: its calls on each set of buffers in turn, and what its turns gave."""

    def __init__(self, calls: list[Call], error: float, first: float) -> None:
        self.runs: Iterator[Callable[[], Any]] = itertools.cycle([call.run for call in calls])
        self.error = error
        self.first = first  # seconds of one call, roughly
        self.turns: list[tuple[float, bool]] = []  # seconds of a call, and whether the machine was calm

    def take_turn(self, limits: Limits, slot: float) -> None:
        time.sleep(PAUSE)
        self.turns.append(calmly(limits, lambda: self.time(slot)))

    def time(self, slot: float) -> float:
        """The median time of a call, from calls for `slot` seconds after a few to warm up."""
        runs = self.runs
        end = now() + slot / 4
        while self.first < slot / 4 and now() < end:
            next(runs)()
        number = max(1, int(SAMPLE / self.first))
        samples: list[float] = []
        end = now() + slot
        while not samples or now() < end:
            start = now()
            for _ in range(number):
                next(runs)()
            samples.append((now() - start) / number)
        return statistics.median(samples)


def calmly(limits: Limits, work: Callable[[], T]) -> tuple[T, bool]:
    """The result of work(), tried again while something disturbs it, and whether it was undisturbed in the end."""
    for _ in range(TRIES):
        shared = all(limits.flops() < CALM * limits.best for _ in range(3))
        start, before = now(), waiting()
        result = work()
        calm = not shared and waiting() - before < LOST * (now() - start)
        if calm:
            break
    return result, calm


def waiting() -> float:
    """Seconds that the threads of this process were ready to run but had no CPU; 0 where the system does not tell."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(path.read_text().split()[1])
    return total / 1e9


def prepare(workload: Workload, name: str, sets: list[Any], threads: int) -> Contestant:
    """A peer with its result checked; Unsupported or the peer's own error if it cannot take part."""
    calls = [PEERS[name](workload, inputs, threads) for inputs in sets]
    off = error(workload, sets[0], calls[0].output(calls[0].run()))
    if off > workload.tolerance:
        raise Unsupported(f"wrong by {off:.1e}")
    for call in calls:
        call.run()  # the first call on some buffers may allocate
    start = now()
    calls[0].run()
    return Contestant(calls, off, now() - start)


def measure(workload: Workload, names: list[str], limits: Limits, options: argparse.Namespace) -> dict[str, Any]:
    """All peers on one workload: turns in random order within each round, which begins with the limits."""
    copies = 2 + 2 * options.cache // workload.kv_bytes if workload.cold else 1
    sets = [workload.inputs(seed) for seed in range(copies)]
    contestants: dict[str, Contestant] = {}
    absent = {}
    for name in names:
        try:
            contestants[name] = prepare(workload, name, sets, limits.threads)
        except ModuleNotFoundError as e:
            absent[name] = f"{e.name} is not installed"
        except Unsupported as e:
            absent[name] = str(e)
        except Exception as e:  # whatever a peer does, the run goes on
            absent[name] = f"{type(e).__name__}: {e}".replace("\n", " ")[:200]

    size = max(1 << 20, workload.kv_bytes * copies)
    order = list(contestants)
    rates = []
    gc.collect()
    gc.disable()
    for i in range(options.rounds):
        rates.append(calmly(limits, lambda: limits.measure(size)))
        random.shuffle(order)
        for name in order:
            if i < 2 or contestants[name].first < 10 * options.slot:  # two turns are enough for the very slow
                contestants[name].take_turn(limits, options.slot)
    gc.enable()
    return {
        "name": workload.name,
        "isa": limits.isa,
        "flops": workload.flops,
        "kv_bytes": workload.kv_bytes,
        "overhead": workload.overhead,
        "copies": copies,
        "rates": [({"flops": x.flops, "reads": {str(n): y for n, y in x.reads.items()}}, calm) for x, calm in rates],
        "peers": {name: {"error": x.error, "turns": x.turns} for name, x in contestants.items()},
        "absent": absent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--slot", type=float, required=True)
    parser.add_argument("--cache", type=int, required=True)
    options = parser.parse_args()
    limits = Limits(gqa.info()["isa"], options.threads)
    names = [name for name in PEERS if re.search(options.peers, name)]
    with options.output.open("a") as file:
        for workload in WORKLOADS:
            if re.search(options.only, workload.name):
                print(workload.name, flush=True)
                result = measure(workload, names, limits, options)
                print(json.dumps(result), file=file, flush=True)


if __name__ == "__main__":
    main()
