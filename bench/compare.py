"""Compares two results of run.py: python bench/compare.py old.json new.json

Times are taken in units of the limit that was measured beside them, so that a faster or busier machine is no gain or
loss. Ends with exit status 1 if a workload became slower by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from report import rows

Key = tuple[int, str, str]
ABSENT = (math.inf, False)  # the time of a peer that failed, or whose result was wrong


def times(result: dict[str, Any], peer: str) -> dict[Key, tuple[float, bool]]:
    """By threads, instruction set and workload: the time as a multiple of the limit, and whether it is noisy."""
    measured = {}
    for run in result["runs"]:
        for row in run["workloads"]:
            own = row["peers"].get(peer)
            key = run["threads"], run["isa"], row["name"]
            measured[key] = (own["seconds"] / row["limit"], own["noisy"]) if own else ABSENT
    return measured


def compare(old: dict[str, Any], new: dict[str, Any], tolerance: float, peer: str = "gqa") -> tuple[str, bool]:
    """A Markdown table of new times over old ones, and whether any is a regression; noisy rows are not judged."""
    before, after = times(old, peer), times(new, peer)
    lines = [["workload", "threads", "isa", "new / old", ""]]
    worse = False
    for key in before:
        if key not in after or before[key] == ABSENT:
            continue
        threads, isa, name = key
        ratio = after[key][0] / before[key][0]
        slower, noisy = ratio > tolerance, before[key][1] or after[key][1]
        worse |= slower and not noisy
        verdict = "slower" if slower else "faster" if ratio < 1 / tolerance else ""
        verdict = "noisy" if noisy else "failed" if after[key] == ABSENT else verdict
        lines.append([name, str(threads), isa, f"{ratio:.2f}", verdict])
    return rows(lines), worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=1.1, help="ratio that counts as slower; default: 1.1")
    parser.add_argument("--peer", default="gqa", help="whose times to compare; default: gqa")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    if not times(old, options.peer).keys() & times(new, options.peer).keys():
        parser.error("the two have no workload in common, with the same threads and instruction set")
    text, worse = compare(old, new, options.tolerance, options.peer)
    print(text)
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
