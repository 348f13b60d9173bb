"""What type checkers find out about the public functions: tests/support/typed_results.py under mypy, strictly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gqa

EXAMPLE = Path(__file__).parents[1] / "support" / "typed_results.py"


def test_results_have_precise_types(tmp_path):
    pytest.importorskip("mypy")
    package = Path(gqa.__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path, EXAMPLE],
        env=os.environ | {"MYPYPATH": str(package.parent)} if "site-packages" not in package.parts else None,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
