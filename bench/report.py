"""Shows a result of run.py: python bench/report.py results.json --markdown table.md --plot roofline.png"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from results import Row, rival


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown: for each process gqa against the fastest peer, then every peer against gqa."""
    machine, versions = result["machine"], result["versions"]
    parts = [f"{machine['cpu']}, {machine['date']}; " + ", ".join(f"{k} {v}" for k, v in versions.items())]
    for run in result["runs"]:
        peak = max(row["flops_rate"] for row in run["workloads"]) / 1e9
        threads = f"{run['threads']} thread" + "s" * (run["threads"] > 1)
        parts.append(f"### {threads}, {run['isa']}: {peak:.0f} GFLOP/s of multiply-adds")
        parts.append(table(run["workloads"]))
        parts.append("Time of each peer, as a multiple of gqa's:")
        parts.append(ratios(run["workloads"]))
        parts += [f"{name} took no part: {reason}." for name, reason in absentees(run["workloads"]).items()]
        if any(row["noisy"] for row in run["workloads"]):
            parts.append("~ too few calm turns: the machine was busy.")
    return "\n\n".join(parts) + "\n"


def absentees(workloads: list[Row]) -> dict[str, str]:
    """Peers that took part in no workload, and why not in the first."""
    present = {name for row in workloads for name in row["peers"]}
    return {name: reason for name, reason in workloads[0]["absent"].items() if name not in present}


def table(workloads: list[Row]) -> str:
    lines = [["workload", "gqa", "rate", "of the limit", "fastest peer", "its time", "of the limit", "gqa is", "error"]]
    for row in workloads:
        ours, name = row["peers"].get("gqa"), rival(row)
        theirs = row["peers"].get(name)
        speedup = f"{theirs['seconds'] / ours['seconds']:.2f}x" if ours and theirs else "–"
        lines.append(
            [
                row["name"] + " ~" * row["noisy"],
                duration(ours),
                rate(row, ours),
                percent(ours),
                name or "–",
                duration(theirs),
                percent(theirs),
                speedup,
                f"{ours['error']:.0e}" if ours else "–",
            ]
        )
    return rows(lines)


def ratios(workloads: list[Row]) -> str:
    names = [name for name in {name: 0 for row in workloads for name in row["peers"]} if name != "gqa"]
    lines = [["workload", *names]]
    for row in workloads:
        ours = row["peers"].get("gqa")
        times = [row["peers"].get(name) for name in names]
        lines.append([row["name"], *(f"{x['seconds'] / ours['seconds']:.2f}" if x and ours else "–" for x in times)])
    return rows(lines)


def rows(cells: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(line) + " |" for line in cells)
    return "\n".join([head, "| --- " + "| ---: " * (len(cells[0]) - 1) + "|", *body])


def duration(peer: Row | None) -> str:
    if peer is None:
        return "–"
    seconds = peer["seconds"]
    unit, scale = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1)
    return f"{seconds * scale:.3g} {unit}"


def rate(row: Row, peer: Row | None) -> str:
    if peer is None or row["bound"] == "overhead":
        return "–"
    if row["bound"] == "compute":
        return f"{row['flops'] / peer['seconds'] / 1e9:.0f} GFLOP/s"
    return f"{row['kv_bytes'] / peer['seconds'] / 1e9:.1f} GB/s"


def percent(peer: Row | None) -> str:
    return "–" if peer is None or peer["percent"] is None else f"{peer['percent']:.0f} %"


def plot(result: dict[str, Any], path: Path) -> None:
    """A roofline: rate of operations over operations per byte of keys and values, under each workload's own limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = result["runs"]
    figure, axes = pyplot.subplots(1, len(runs), figsize=(6.4 * len(runs), 4.8), squeeze=False, layout="constrained")
    for axis, run in zip(axes[0], runs):
        for row in run["workloads"]:
            if row["bound"] == "overhead" or "gqa" not in row["peers"]:
                continue
            x, name = row["flops"] / row["kv_bytes"], rival(row)
            limit, ours = row["flops"] / row["limit"] / 1e9, row["flops"] / row["peers"]["gqa"]["seconds"] / 1e9
            axis.plot([x, x], [ours, limit], color="0.8", zorder=0)
            axis.plot(x, limit, "_k", label="limit of the machine")
            axis.plot(x, ours, "o", color="C0", label="gqa")
            if name:
                axis.plot(x, row["flops"] / row["peers"][name]["seconds"] / 1e9, "x", color="C1", label="fastest peer")
        axis.set(xscale="log", yscale="log", xlabel="operations per byte of keys and values", ylabel="GFLOP/s")
        axis.set_title(f"{run['threads']} thread" + "s" * (run["threads"] > 1) + f", {run['isa']}")
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles))
        axis.legend(unique.values(), unique.keys(), loc="lower right")
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables here; default: print them")
    parser.add_argument("--plot", type=Path, help="write a roofline plot here (PNG, SVG or PDF)")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    if options.markdown:
        options.markdown.write_text(markdown(result))
    else:
        print(markdown(result))
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
