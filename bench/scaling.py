"""A cost model of gqa.distributed.ShardedKVCache: decode steps on any number of ranks, from measured constants.

    python bench/scaling.py scaling.json --plot docs/scaling.png

A step takes as long as its longest share of the keys takes to read, and two collective calls: the agreement, of 16
bytes a rank, and the states, of which every rank receives all. Each is taken to cost a latency for each doubling of
the ranks and its bytes at the interconnect's rate; then every rank merges all states.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqa.distributed.deal import Deal

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
STATE_BYTES = Q_HEADS * (HEAD_DIM + 2) * 4
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
TOKENS = [1 << 20, 1 << 22, 1 << 24]


@dataclass(frozen=True)
class Machine:
    """Seconds, and bytes a second; of one rank."""

    fixed: float  # of a step, however few keys
    reading: float  # keys and values
    latency: float  # of a message
    bandwidth: float  # of the interconnect
    merging: float  # bytes of states


def blocks_and_share(ranks: int, tokens: int) -> tuple[int, int]:
    """How many blocks there are, and the tokens of the rank that has the most."""
    blocks = sum(1 for _ in Deal(ranks, 0).blocks(0, tokens))
    return blocks, max(Deal(ranks, rank).held(tokens) for rank in range(ranks))


def step(machine: Machine, ranks: int, tokens: int, element_bytes: int = 2) -> dict[str, float]:
    """The parts of a decode step, in seconds."""
    blocks, share = blocks_and_share(ranks, tokens)
    states = blocks * STATE_BYTES
    doublings = (ranks - 1).bit_length()
    return {
        "reading": share * 2 * KV_HEADS * HEAD_DIM * element_bytes / machine.reading,
        "latency": 2 * doublings * machine.latency,
        "states": states * (ranks - 1) / ranks / machine.bandwidth,
        "merging": states / machine.merging,
        "fixed": machine.fixed,
    }


def measured(results: dict[str, Any]) -> Machine:
    """The constants of the machine that bench/distributed.py ran on: what its longest and shortest steps say."""
    element_bytes = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}[results["dtype"]]
    keys = sorted(int(name.split()[1]) for name in results if name.startswith("decode"))
    longest, shortest = (results[f"decode {n}"] for n in (keys[-1], keys[0]))
    token = 2 * KV_HEADS * HEAD_DIM * element_bytes
    reading = keys[-1] * token / longest["one"]
    messages = {int(size): seconds for size, seconds in results["messages"].items()}
    small, large = min(messages), max(messages)
    bandwidth = large * results["ranks"] / (messages[large] - messages[small])
    fixed = max(shortest["one"] - keys[0] * token / reading, 0.0)
    return Machine(fixed, reading, messages[small], bandwidth, results["merging"])


def print_predictions(machine: Machine, results: dict[str, Any]) -> None:
    element_bytes = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}[results["dtype"]]
    for name, times in results.items():
        if not name.startswith("decode"):
            continue
        keys = int(name.split()[1])
        for ranks, took in ((1, times["one"]), (results["ranks"], times["all"])):
            predicted = sum(step(machine, ranks, keys, element_bytes).values())
            print(f"{name} on {ranks}: {took * 1e3:.3f} ms, predicted {predicted * 1e3:.3f} ms")


def plot(machine: Machine, path: Path) -> None:
    """Speedup over ranks for each length, on this machine's shared memory and on interconnects."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    networks = {"this machine": machine} | {
        f"{gigabytes} GB/s, {micro} µs": Machine(
            machine.fixed, machine.reading, micro * 1e-6, gigabytes * 1e9, machine.merging
        )
        for gigabytes, micro in ((12.5, 2), (1.25, 20))
    }
    figure, axes = plt.subplots(1, len(networks), figsize=(4 * len(networks), 4), sharey=True)
    for axis, (name, network) in zip(axes, networks.items()):
        for tokens in TOKENS:
            one = sum(step(network, 1, tokens).values())
            speedup = [one / sum(step(network, ranks, tokens).values()) for ranks in RANKS]
            axis.loglog(RANKS, speedup, marker="o", label=f"{tokens >> 20} M tokens")
        axis.loglog(RANKS, RANKS, color="gray", linewidth=0.5)
        axis.set(title=name, xlabel="ranks")
    axes[0].set_ylabel("speedup of a decode step")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what bench/distributed.py has written")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    machine = measured(results)
    print(machine)
    print_predictions(machine, results)
    for tokens in TOKENS:
        for ranks in (8, 64, 1024):
            parts = step(machine, ranks, tokens)
            text = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in parts.items())
            print(f"{tokens >> 20} M tokens on {ranks} ranks: {sum(parts.values()) * 1e3:.2f} ms ({text})")
    if args.plot:
        plot(machine, args.plot)


if __name__ == "__main__":
    main()
