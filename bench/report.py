"""Shows a result of run.py: python bench/report.py results.json --markdown table.md --plot roofline.png"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from results import FLOAT32, Row, rival, rivals


def markdown(result: dict[str, Any], compact: bool = False) -> str:
    """The result as Markdown: for each process gqa against the fastest peer, then every peer against gqa."""
    machine, versions = result["machine"], result["versions"]
    parts = [f"{machine['cpu']}, {machine['date']}; " + ", ".join(f"{k} {v}" for k, v in versions.items())]
    for run in result["runs"]:
        workloads = run["workloads"]
        peak = max(row["flops_rate"] for row in workloads) / 1e9
        parts.append(f"### {title(run)}: {peak:.0f} GFLOP/s of multiply-adds")
        parts.append(short_table(workloads) if compact else table(workloads))
        if not compact:
            parts += ["Time of each peer, as a multiple of gqa's:", ratios(workloads)]
        if any(FLOAT32 in row["peers"] for row in workloads):
            parts += ["Smaller types against gqa with the same values in float32:", gains(workloads)]
        if not compact and any(row["absent"] for row in workloads):
            parts += ["Took no part:", absentees(workloads)]
        if any(row["noisy"] for row in workloads):
            parts.append("~ too few calm turns: the machine was busy.")
    return "\n\n".join(parts) + "\n"


def title(run: dict[str, Any]) -> str:
    threads = "threads" if run["threads"] > 1 else "thread"
    return f"{run['threads']} {threads}, {run['isa']}"


def table(workloads: list[Row]) -> str:
    lines = [["workload", "gqa", "rate", "of the limit", "fastest peer", "its time", "of the limit", "gqa is", "error"]]
    for row in workloads:
        ours, name = row["peers"].get("gqa"), rival(row)
        theirs = row["peers"].get(name)
        error = f"{ours['error']:.0e}" if ours else "–"
        cells = [duration(ours), rate(row, ours), percent(row, ours), name or "–", duration(theirs)]
        lines.append([marked(row), *cells, percent(row, theirs), times(theirs, ours), error])
    return rows(lines)


def short_table(workloads: list[Row]) -> str:
    lines = [["workload", "gqa", "of the limit", "fastest peer", "gqa is"]]
    for row in workloads:
        ours, name = row["peers"].get("gqa"), rival(row)
        cells = [duration(ours), percent(row, ours), name or "–", times(row["peers"].get(name), ours)]
        lines.append([marked(row), *cells])
    return rows(lines)


def ratios(workloads: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in workloads for name in rivals(row)))
    lines = [["workload", *names]]
    for row in workloads:
        ours = row["peers"].get("gqa")
        lines.append([marked(row), *(times(row["peers"].get(name), ours) for name in names)])
    return rows(lines)


def gains(workloads: list[Row]) -> str:
    lines = [["workload", "gqa", "gqa float32", "gqa is"]]
    for row in workloads:
        ours, wide = row["peers"].get("gqa"), row["peers"].get(FLOAT32)
        if wide:
            lines.append([marked(row), duration(ours), duration(wide), times(wide, ours)])
    return rows(lines)


def absentees(workloads: list[Row]) -> str:
    """A list of peers, why they took no part, and in how many workloads."""
    reasons = Counter((name, why) for row in workloads for name, why in row["absent"].items() if name != FLOAT32)
    return "\n".join(f"- {name} in {count} of {len(workloads)}: {why}" for (name, why), count in reasons.items())


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


def percent(row: Row, peer: Row | None) -> str:
    return "–" if peer is None or peer["percent"] is None else f"{peer['percent']:.0f} % {row['bound']}"


def times(slower: Row | None, faster: Row | None) -> str:
    return f"{slower['seconds'] / faster['seconds']:.2f}x" if slower and faster else "–"


def marked(row: Row) -> str:
    return f"{row['name']} ~" if row["noisy"] else str(row["name"])


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
        axis.set_title(title(run))
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles))
        axis.legend(unique.values(), unique.keys(), loc="lower right")
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables here; default: print them")
    parser.add_argument("--compact", action="store_true", help="only gqa and the fastest peer, in few columns")
    parser.add_argument("--plot", type=Path, help="write a roofline plot here (PNG, SVG or PDF)")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    text = markdown(result, options.compact)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
