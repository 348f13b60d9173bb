"""The flax example: it learns, and the same with gqa's attention as with flax's own."""

import importlib.util
import re

import pytest

from repository import ROOT

pytest.importorskip("flax.nnx", reason="flax is not installed")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("flax_example", ROOT / "examples" / "flax_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(example, monkeypatch, capsys, attention):
    monkeypatch.setattr("sys.argv", ["flax_model.py", "--attention", attention, "--steps", "60"])
    example.main()
    printed = capsys.readouterr().out
    assert f"attention by {attention}: " in printed
    return [float(x) for x in re.findall(r"loss (\S+)", printed)]


def test_training_as_with_flax_itself(example, monkeypatch, capsys):
    mine, theirs = (losses(example, monkeypatch, capsys, attention) for attention in ("gqa", "flax"))
    assert len(mine) > 10
    assert mine == pytest.approx(theirs, abs=2e-3)
    assert mine[-1] < mine[0] - 0.3
