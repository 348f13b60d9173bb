"""Runs the benchmark: python bench/run.py --threads 1 --out results.json

Every number of threads, and every instruction set forced on gqa, is measured in a process of its own, pinned to as many
CPUs as it has threads. The result holds all measurements and what they amount to; report.py shows it. It is written
after each workload: an interrupted run leaves what it has measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from report import markdown
from results import Row, summarise
from workloads import WORKLOADS

HERE = Path(__file__).parent
PACKAGES = ("gqa", "numpy", "torch", "onnxruntime", "openvino", "jax")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--isa", nargs="+", default=[""], help="instruction sets for gqa; default: the best one")
    parser.add_argument("--only", default="", help="a regular expression for the names of workloads")
    parser.add_argument("--peers", default="", help="a regular expression for the names of peers")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--slot", type=float, default=0.06, help="seconds for each peer in each round; default: 0.06")
    options = parser.parse_args()
    names = [workload.name for workload in WORKLOADS if re.search(options.only, workload.name)]
    if not names:
        parser.error(f"no workload matches {options.only!r}")
    if not options.out.parent.is_dir():
        parser.error(f"{options.out.parent} is not a directory")

    result: dict[str, Any] = {"machine": machine(), "versions": versions(), "runs": []}
    complete = True
    try:
        for threads in options.threads:
            for isa in options.isa:
                rows: list[Row] = []
                for row in measured(names, threads, isa, options):
                    if not rows:
                        result["runs"].append({"threads": threads, "isa": row["isa"], "workloads": rows})
                    summarise(row)
                    rows.append(row)
                    write(result, options.out)
                complete &= len(rows) == len(names)
    except KeyboardInterrupt:
        complete = False
    print(markdown(result))
    return 0 if complete else 1


def measured(names: list[str], threads: int, isa: str, options: argparse.Namespace) -> Iterator[Row]:
    """The workloads of one number of threads and instruction set, as they come; without any in which a peer crashed."""
    done = 0
    while done < len(names):
        process, rows = start(names[done:], threads, isa, options)
        try:
            for line in rows:
                print(f"{threads} thread{'s' * (threads > 1)} {isa}: {names[done]}", file=sys.stderr)
                done += 1
                yield json.loads(line)
        except BaseException:
            process.terminate()
            raise
        code = process.wait()
        if done < len(names):
            print(f"{names[done]}: the process ended with exit status {code}", file=sys.stderr)
            if code > 0:  # not a crash, so that the next process would fare no better
                return
            done += 1


def start(
    names: list[str], threads: int, isa: str, options: argparse.Namespace
) -> tuple[subprocess.Popen[bytes], TextIO]:
    """A process that measures workloads, and the end of a pipe to read them from."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    for library in ("OMP", "OPENBLAS", "MKL", "GQA"):
        environment[f"{library}_NUM_THREADS"] = str(threads)
    if isa:
        environment["GQA_ISA"] = isa
    output, pipe = os.pipe()
    command = [sys.executable, str(HERE / "measure.py"), *names, f"--pipe={pipe}", f"--threads={threads}"]
    command += [f"--peers={options.peers}", f"--rounds={options.rounds}", f"--slot={options.slot}"]
    command += [f"--cache={machine()['cache']}"]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, separate_cpus(threads))
    process = subprocess.Popen(command, env=environment, pass_fds=[pipe])
    os.sched_setaffinity(0, before)
    os.close(pipe)
    return process, os.fdopen(output)


def write(result: dict[str, Any], path: Path) -> None:
    """Replace the file at once, so that whoever interrupts or reads it finds a whole one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)


def separate_cpus(count: int) -> set[int]:
    """`count` of the CPUs that this process may use, on cores of their own as far as possible."""
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise SystemExit(f"{count} threads on {len(available)} CPUs would measure nothing")
    taken: dict[str, int] = {}
    order = []
    for cpu in available:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        taken[core] = taken.get(core, -1) + 1
        order.append((taken[core], cpu))
    return {cpu for _, cpu in sorted(order)[:count]}


def machine() -> dict[str, Any]:
    """What it runs on; `cache` is the size of the largest cache in bytes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "cache": max((int(size.rstrip("K")) << 10 for size in sizes), default=32 << 20),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
