"""Runs the benchmark: python bench/run.py --threads 1 --out results.json

Every number of threads, and every instruction set forced on gqa, is measured in a process of its own, pinned to as many
CPUs as it has threads. The result holds all measurements and what they amount to; report.py shows it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import markdown
from results import summarise

HERE = Path(__file__).parent
PACKAGES = ("gqa", "numpy", "torch", "onnxruntime", "openvino", "jax")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--isa", nargs="+", default=[""], help="instruction sets for gqa; default: the best one")
    parser.add_argument("--only", default="", help="a regular expression for the names of workloads")
    parser.add_argument("--peers", default="", help="a regular expression for the names of peers")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--slot", type=float, default=0.06, help="seconds for each peer in each round; default: 0.06")
    options = parser.parse_args()

    result: dict[str, Any] = {"machine": machine(), "versions": versions(), "runs": []}
    complete = True
    for threads in options.threads:
        for isa in options.isa:
            workloads, whole = run(threads, isa, options)
            complete &= whole
            if workloads:
                for row in workloads:
                    summarise(row)
                result["runs"].append({"threads": threads, "isa": workloads[0]["isa"], "workloads": workloads})
                options.out.write_text(json.dumps(result, indent=1))
    print(markdown(result))
    return 0 if complete else 1


def run(threads: int, isa: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """The workloads that one process measured, and whether it came to its end."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    for library in ("OMP", "OPENBLAS", "MKL", "GQA"):
        environment[f"{library}_NUM_THREADS"] = str(threads)
    if isa:
        environment["GQA_ISA"] = isa
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        lines.touch()
        command = [sys.executable, str(HERE / "measure.py"), str(lines), f"--threads={threads}"]
        command += [f"--only={options.only}", f"--peers={options.peers}", f"--rounds={options.rounds}"]
        command += [f"--slot={options.slot}", f"--cache={machine()['cache']}"]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, separate_cpus(threads))
        code = subprocess.run(command, env=environment, check=False).returncode
        os.sched_setaffinity(0, before)
        if code != 0:
            print(f"the process for {threads} threads {isa} ended early with exit status {code}", file=sys.stderr)
        return [json.loads(line) for line in lines.read_text().splitlines()], code == 0


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
