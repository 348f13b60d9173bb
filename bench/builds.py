"""Compares two builds in one process: python bench/builds.py OLD NEW --only prompt

OLD and NEW are folders with a built package `gqa` in them, as `pip install --no-deps --target OLD .` fills. Each is
copied and imported under a name of its own, since the extension of one name is loaded only once; OLD is so twice. The
builds take turns on the same buffers, in an order that changes from round to round. Shown are the medians, over the
rounds, of the time of NEW and of the second OLD, each divided by that of OLD in the same round: the last is what comes
out for the same code.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from workloads import WORKLOADS, Inputs, Workload

OLD, NEW, CONTROL = "gqa_old", "gqa_new", "gqa_old_again"
SAMPLE = 2e-4  # seconds: quicker calls are timed several at once


def load(folder: Path, name: str, into: Path) -> ModuleType:
    """The package `gqa` of a folder under another name."""
    package = into / name
    shutil.copytree(folder / "gqa", package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package.rglob("*.py"):
        path.write_text(re.sub(r"\bgqa\b", name, path.read_text()))
    return importlib.import_module(name)


def call(gqa: ModuleType, workload: Workload, inputs: Inputs, threads: int) -> Callable[[], Any]:
    q, k, v = inputs
    if workload.cache:
        k, v = gqa.quantize(k), gqa.quantize(v)
    if workload.backward:
        out, lse = gqa.attention(q, k, v, causal=workload.causal, return_lse=True)
        dout = workload.output_gradient()
        return lambda: gqa.attention_vjp(dout, q, k, v, out, lse, causal=workload.causal, num_threads=threads)
    return lambda: gqa.attention(q, k, v, causal=workload.causal, num_threads=threads)


def seconds(run: Callable[[], Any], slot: float) -> float:
    """The median time of a call, from calls for `slot` seconds."""
    start = time.perf_counter()
    run()
    number = max(1, int(SAMPLE / (time.perf_counter() - start)))
    samples: list[float] = []
    end = time.perf_counter() + slot
    while not samples or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(number):
            run()
        samples.append((time.perf_counter() - start) / number)
    return statistics.median(samples)


def compare(builds: dict[str, ModuleType], workload: Workload, options: argparse.Namespace) -> tuple[float, float]:
    """Time of NEW and of OLD again, in units of OLD's: medians over the rounds."""
    inputs = workload.inputs(0)
    runs = {name: call(gqa, workload, inputs, options.threads) for name, gqa in builds.items()}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(options.rounds):
        random.shuffle(order)
        times = {name: seconds(runs[name], options.slot) for name in order}
        for name in runs:
            ratios[name].append(times[name] / times[OLD])
    return statistics.median(ratios[NEW]), statistics.median(ratios[CONTROL])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a folder with a built package gqa")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--only", default="", help="a regular expression for the names of workloads")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--slot", type=float, default=0.06, help="seconds for each build in each round; default: 0.06")
    options = parser.parse_args()
    workloads = [workload for workload in WORKLOADS if re.search(options.only, workload.name) and not workload.cold]
    if not workloads:
        parser.error(f"no workload matches {options.only!r}")
    with tempfile.TemporaryDirectory() as into:
        sys.path.insert(0, into)
        folders = {OLD: options.old, NEW: options.new, CONTROL: options.old}
        builds = {name: load(folder, name, Path(into)) for name, folder in folders.items()}
        print("| workload | new / old | old / old |\n| --- | ---: | ---: |")
        for workload in workloads:
            new, control = compare(builds, workload, options)
            print(f"| {workload.name} | {new:.3f} | {control:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
