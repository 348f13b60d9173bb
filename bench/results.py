"""What the numbers of a run amount to: medians of calm rounds, the limit of each workload, ratios between peers."""

from __future__ import annotations

import statistics
from typing import Any

FLOAT32 = "gqa float32"  # on the same values; takes part where keys and values are of a smaller type
FEWEST = 2  # calm turns; a peer with fewer is noisy

Row = dict[str, Any]


def summarise(row: Row) -> None:
    """Add to a workload, and to each of its peers, what follows from its measurements.

    A workload gains `flops_rate` and `read_rate` (per second, the latter with the best number of `streams`;
    `single_stream` is that of one), `bound` (which of the two takes longer, "compute" or "memory"; "overhead" if the
    call itself does), `limit` (seconds) and `noisy`. Its peers gain `seconds`, `noisy`, `ratio` (to the fastest) and
    `percent` (of the limit).
    """
    rates, _ = calm(row["rates"])
    reads = {n: statistics.median(rate["reads"][n] for rate in rates) for n in rates[0]["reads"]}
    row["streams"], row["read_rate"] = max(reads.items(), key=lambda item: item[1])
    row["single_stream"] = reads["1"]
    row["flops_rate"] = statistics.median(rate["flops"] for rate in rates)
    compute, memory = row["flops"] / row["flops_rate"], row["kv_bytes"] / row["read_rate"]
    row["limit"] = compute if row["overhead"] else max(compute, memory)
    row["bound"] = "overhead" if row["overhead"] else "compute" if compute >= memory else "memory"
    for peer in row["peers"].values():
        times, peer["noisy"] = calm(peer["turns"])
        peer["seconds"] = statistics.median(times)
        peer["percent"] = None if row["overhead"] else 100 * row["limit"] / peer["seconds"]
    fastest = min((peer["seconds"] for peer in row["peers"].values()), default=0.0)
    for peer in row["peers"].values():
        peer["ratio"] = peer["seconds"] / fastest
    shown = [row["peers"].get(name) for name in ("gqa", FLOAT32, rival(row))]
    row["noisy"] = any(peer["noisy"] for peer in shown if peer)


def calm(turns: list[tuple[Any, bool]]) -> tuple[list[Any], bool]:
    """The values of calm turns, of all turns if none was calm; and whether fewer than FEWEST were."""
    values = [value for value, undisturbed in turns if undisturbed]
    return values or [value for value, _ in turns], len(values) < min(FEWEST, len(turns))


def rivals(row: Row) -> list[str]:
    """The peers other than gqa itself."""
    return [name for name in row["peers"] if name not in ("gqa", FLOAT32)]


def rival(row: Row) -> str | None:
    """The fastest of them."""
    return min(rivals(row), key=lambda name: row["peers"][name]["seconds"], default=None)
