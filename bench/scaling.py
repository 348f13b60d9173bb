"""A cost model of gqa.distributed on any number of ranks, decode steps and prompts, from measured constants.

    python bench/scaling.py scaling.json --plot docs/static

A decode step takes as long as its longest share of the keys takes to read, one exchange, of which every rank receives
the states of all, and to merge those. A prompt takes as long as its arithmetic, and the pieces of keys and values that
come by, for each block of its queries anew where there are more than two. A collective operation is taken to cost a
latency for each doubling of the ranks, and its bytes at the interconnect's rate; nothing is taken to hide behind
anything else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqa.distributed.deal import Deal
from gqa.distributed.pieces import AT_ONCE, PIECE
from gqa.distributed.prompt_call import LARGEST_BLOCK, LEAST_BLOCK
from gqa.subtrees import most_waiting

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
STATE_BYTES = Q_HEADS * (HEAD_DIM + 2) * 4  # of a query, in float32
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
TOKENS = [1 << 20, 1 << 22, 1 << 24]
NETWORKS = {"12.5 GB/s, 2 µs": (12.5e9, 2e-6), "1.25 GB/s, 20 µs": (1.25e9, 20e-6)}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

Parts = dict[str, float]


@dataclass(frozen=True)
class Machine:
    """Seconds, and bytes or operations a second; of one rank while the others are busy, too."""

    fixed: float  # of a step on several ranks, however few keys
    reading: float  # keys and values
    computing: float  # multiplications and additions of a prompt
    latency: float  # of a message
    bandwidth: float  # of the interconnect
    merging: float  # bytes of states


def token_bytes(element_bytes: int) -> int:
    """Of its keys and values."""
    return 2 * KV_HEADS * HEAD_DIM * element_bytes


def blocks_and_share(ranks: int, tokens: int) -> tuple[int, int]:
    """How many blocks there are, and the tokens of the rank that has the most."""
    blocks = sum(1 for _ in Deal(ranks, 0).blocks(0, tokens))
    return blocks, max(Deal(ranks, rank).held(tokens) for rank in range(ranks))


def step(machine: Machine, ranks: int, tokens: int, element_bytes: int = 2) -> Parts:
    """The parts of a decode step, in seconds."""
    blocks, share = blocks_and_share(ranks, tokens)
    states = blocks * STATE_BYTES * (ranks > 1)
    return {
        "reading": share * token_bytes(element_bytes) / machine.reading,
        "latency": (ranks - 1).bit_length() * machine.latency,
        "states": states * (ranks - 1) / ranks / machine.bandwidth,
        "merging": states / machine.merging,
        "fixed": machine.fixed * (ranks > 1),
    }


def operations(tokens: int) -> float:
    """Of a causal prompt: two products of each query with half of the keys."""
    return 2.0 * Q_HEADS * HEAD_DIM * tokens * tokens


def prompt(machine: Machine, ranks: int, tokens: int, element_bytes: int = 4) -> Parts:
    """The parts of a causal prompt, in seconds."""
    pieces = -(-tokens // PIECE)
    own, rounds, merged = -(-tokens // ranks), 1, 0.0
    gathered = float(pieces)
    if pieces > AT_ONCE:
        room = PIECE * token_bytes(element_bytes) // (most_waiting(pieces) * STATE_BYTES)
        rows = min(own, LARGEST_BLOCK, max(LEAST_BLOCK, room))
        rounds = -(-own // rows)
        # Under a causal mask block i of the queries needs the pieces before it, on average half of all.
        gathered = rounds * (pieces + 1) / 2
        merged = gathered * rows * STATE_BYTES
    received = gathered * tokens / pieces * token_bytes(element_bytes)
    return {
        "arithmetic": operations(tokens) / ranks / machine.computing,
        "latency": gathered * (ranks - 1).bit_length() * machine.latency,
        "keys and values": received * (ranks - 1) / ranks / machine.bandwidth,
        "merging": merged / machine.merging,
    }


def measured(results: dict[str, Any]) -> Machine:
    """The constants of the machine that bench/distributed.py ran on, from the best of its longest steps and prompts."""
    element_bytes = ELEMENT_BYTES[results["dtype"]]
    steps = sorted(int(name.split()[1]) for name in results if name.startswith("decode"))
    prompts = sorted(int(name.split()[1]) for name in results if name.startswith("prompt"))
    messages = {int(size): seconds for size, seconds in results["messages"].items()}
    small, large = min(messages), max(messages)
    bandwidth = large * (results["ranks"] - 1) / (messages[large] - messages[small])
    shortest = results[f"decode {steps[0]}"]
    return Machine(
        fixed=max(shortest["best all"] - shortest["best busy"], 0.0),
        reading=steps[-1] * token_bytes(element_bytes) / results[f"decode {steps[-1]}"]["best busy"],
        computing=operations(prompts[-1]) / results[f"prompt {prompts[-1]}"]["best busy"],
        latency=messages[small],
        bandwidth=bandwidth,
        merging=results["merging"],
    )


def print_predictions(machine: Machine, results: dict[str, Any]) -> None:
    """What was measured on all ranks, beside what the model says."""
    for name, times in results.items():
        kind, _, size = name.partition(" ")
        if kind in ("decode", "prompt"):
            element_bytes = ELEMENT_BYTES[results["dtype"]] if kind == "decode" else 4
            parts = (step if kind == "decode" else prompt)(machine, results["ranks"], int(size), element_bytes)
            took = f"{times['best all'] * 1e3:.3f} ms at best, {times['all'] * 1e3:.3f} in the middle"
            print(f"{name}: {took}, predicted {sum(parts.values()) * 1e3:.3f} ms")


def plot(machine: Machine, what: Callable[[Machine, int, int], Parts], title: str, path: Path) -> None:
    """Speedup over ranks for each length, on this machine's shared memory and on interconnects."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    networks = {"this machine": machine} | {
        name: replace(machine, bandwidth=bandwidth, latency=latency) for name, (bandwidth, latency) in NETWORKS.items()
    }
    figure, axes = plt.subplots(1, len(networks), figsize=(4 * len(networks), 4), sharey=True)
    for axis, (name, network) in zip(axes, networks.items()):
        for tokens in TOKENS:
            one = sum(what(network, 1, tokens).values())
            speedup = [one / sum(what(network, ranks, tokens).values()) for ranks in RANKS]
            axis.loglog(RANKS, speedup, marker="o", label=f"{tokens >> 20} M tokens")
        axis.loglog(RANKS, RANKS, color="gray", linewidth=0.5)
        axis.set(title=name, xlabel="ranks")
    axes[0].set_ylabel(f"speedup of a {title}")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what bench/distributed.py has written")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="where to write the plots")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    machine = measured(results)
    print(machine)
    print_predictions(machine, results)
    networks = {"this machine": (machine.bandwidth, machine.latency)} | NETWORKS
    for title, what in (("decode step", step), ("prompt", prompt)):
        for name, (bandwidth, latency) in networks.items():
            for tokens in TOKENS:
                for ranks in (8, 64, 1024):
                    parts = what(replace(machine, bandwidth=bandwidth, latency=latency), ranks, tokens)
                    text = ", ".join(f"{part} {seconds:.3g}" for part, seconds in parts.items())
                    total = sum(parts.values())
                    print(f"{title} of {tokens >> 20} M tokens on {ranks} ranks, {name}: {total:.4g} s ({text})")
        if args.plot:
            plot(machine, what, title, args.plot / f"scaling_{title.split()[0]}.png")


if __name__ == "__main__":
    main()
