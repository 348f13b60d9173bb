"""Python in a process of its own, for what could crash, hang, or change the process that does it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import gqa

PATHS = [str(Path(__file__).parent), str(Path(gqa.__file__).parent.parent)]

# Enough work for several threads; one head, so that its keys are split among them.
PARALLEL = """
import numpy as np, gqa
q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 4096, 64)).astype(np.float32)
q = np.repeat(q[:, :, :4], 4, axis=1)
def call(threads=4):
    return gqa.attention(q, k, v, num_threads=threads).tobytes()
"""


def start(code, *arguments, **environment):
    """Runs code, with the tests and gqa on its path, and returns the CompletedProcess."""
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    kept = {name: x for name, x in os.environ.items() if not name.startswith(("GQA_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=kept | {"PYTHONPATH": path} | environment, capture_output=True, text=True,
    )  # fmt: skip


def output_of(code, *arguments, **options):
    """What code prints; fails unless it ends well."""
    result = start(code, *arguments, **options)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()
