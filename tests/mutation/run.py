"""run.py [FIRST [LAST]]: sows each fault of faults.py into a copy of the sources, builds it, and runs the tests.

Prints a line for each fault, and at the end how many no test found; exit status 1 if there are any. Builds the
instruction set that --isa names alone, and takes about an hour.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import FAULTS

ROOT = Path(__file__).parents[2]
TESTS = [
    "core/test_attention.py", "core/test_masking.py", "core/test_nonfinite.py", "core/test_invariance.py",
    "core/test_long_sequences.py", "core/test_accuracy.py", "core/test_quantize.py", "core/test_varlen.py",
    "caches/test_cache.py", "caches/test_cache_ring.py", "caches/test_paged.py", "core/test_gradients.py",
    "core/test_score_skipping.py", "scores/test_core_programs.py",
]  # fmt: skip
FIRST = {
    "gradient": "core/test_gradients.py",
    "covers": "core/test_score_skipping.py",
    "slots": "caches/test_cache_ring.py",
    "pages": "caches/test_paged.py",
    "integers": "core/test_quantize.py",
    "states": "core/test_long_sequences.py",
    "mask.h": "core/test_masking.py",
}
PATIENCE = 1800  # seconds; tests that take longer wait for what never comes


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def build(tree: Path, isa: str) -> None:
    """Builds the extension of a copy of the sources into it."""
    import pybind11

    folder = tree / "build/mutation"
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGQA_KERNEL_OPTIMIZATION=-O1",
        f"-DGQA_ONLY={isa}",
        "-DGQA_XLA_INCLUDE=OFF",
    ]
    options += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    options += ["-DSKBUILD_PROJECT_VERSION=0", "-G", "Ninja"]
    for command in (["cmake", "-S", tree, "-B", folder, *options], ["cmake", "--build", folder]):
        done = run(command)
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
    for extension in folder.glob("_core*.so"):
        shutil.copy(extension, tree / "python/gqa")


def found_by(tree: Path, file: str = "") -> str | None:
    """The test that fails first, those of the file's own area before others; None if all pass."""
    own = [test for part, test in FIRST.items() if part in file]
    tests = [tree / "tests" / test for test in dict.fromkeys([*own, *TESTS])]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *tests]
    try:
        done = run(command, PYTHONPATH=f"{tree}/python")
    except subprocess.TimeoutExpired:
        return "tests that do not end"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 0:
        return None
    return failed[0].partition(" - ")[0] if failed else "a crash"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", nargs="?", type=int, default=0)
    parser.add_argument("last", nargs="?", type=int, default=len(FAULTS) - 1)
    parser.add_argument("--isa", default="avx2")
    arguments = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in ("csrc", "python", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for name in ("CMakeLists.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, tree)
        build(tree, arguments.isa)
        if test := found_by(tree):
            print(f"without any fault: {test}")
            return 1
        for number in range(arguments.first, arguments.last + 1):
            file, before, after = FAULTS[number]
            path = tree / "csrc" / file
            source = path.read_text()
            if source.count(before) != 1:
                print(f"{number} {file}: {before!r} is there {source.count(before)} times: mend faults.py", flush=True)
                missed += 1
                continue
            path.write_text(source.replace(before, after))
            build(tree, arguments.isa)
            test = found_by(tree, file)
            path.write_text(source)
            missed += test is None
            print(f"{number} {file}: {before!r}: {test or 'NOT FOUND'}", flush=True)
    print(f"{missed} of {arguments.last + 1 - arguments.first} faults not found")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
