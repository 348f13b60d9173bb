"""Measures workloads in this process, a line of JSON for each. Started by run.py with threads and CPUs already set."""

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
from peers import PEERS, Call, Unsupported, adapter
from workloads import WORKLOADS, Array, Workload, error, reference

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


def prepare(workload: Workload, name: str, sets: list[Any], expected: Array, threads: int) -> Contestant:
    """A peer with its result on the first set checked; Unsupported or its own error if it cannot take part."""
    calls = [adapter(name, workload)(workload, inputs, threads) for inputs in sets]
    off = error(calls[0].output(calls[0].run()), expected, workload.queries)
    if off > workload.tolerance:
        raise Unsupported(f"wrong by {off:.1e}")
    for call in calls[1:]:
        call.run()  # the first call on some buffers may allocate
    start = now()
    calls[0].run()
    return Contestant(calls, off, now() - start)


def measure(workload: Workload, names: list[str], limits: Limits, options: argparse.Namespace) -> dict[str, Any]:
    """All peers on one workload: turns in random order within each round, which begins with the limits."""
    copies = 2 + 2 * options.cache // workload.kv_bytes if workload.cold else 1
    sets = [workload.inputs(seed) for seed in range(copies)]
    expected = reference(workload, sets[0])
    contestants: dict[str, Contestant] = {}
    absent = {}
    for name in names:
        try:
            contestants[name] = prepare(workload, name, sets, expected, limits.threads)
        except ModuleNotFoundError as e:
            absent[name] = f"{e.name} is not installed"
        except Unsupported as e:
            absent[name] = str(e)
        except Exception as e:  # whatever a peer does, the run goes on
            absent[name] = explain(e)

    size = max(1 << 20, workload.kv_bytes * copies)
    order = list(contestants)
    fastest = min((x.first for x in contestants.values()), default=0.0)
    long = max(options.slot, 3 * fastest)  # two turns are enough for those who take longer
    rates = []
    gc.collect()
    gc.disable()
    for i in range(options.rounds):
        rates.append(calmly(limits, lambda: limits.measure(size)))
        random.shuffle(order)
        for name in order:
            if i < 2 or contestants[name].first < long:
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


def explain(e: Exception) -> str:
    """The kind of an error and the last line of its message, where libraries of several layers come to the point."""
    return f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[-1]}"[:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", help="of the workloads")
    parser.add_argument("--pipe", type=int, required=True, help="the file descriptor to write to")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--slot", type=float, required=True)
    parser.add_argument("--cache", type=int, required=True)
    options = parser.parse_args()
    limits = Limits(gqa.info()["isa"], options.threads)
    peers = [name for name in PEERS if re.search(options.peers, name)]
    workloads = {workload.name: workload for workload in WORKLOADS}
    with open(options.pipe, "w") as pipe:
        for name in options.names:
            print(json.dumps(measure(workloads[name], peers, limits, options)), file=pipe, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # run.py keeps what has been written
        main()
