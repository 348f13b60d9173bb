"""The example of a whole model: what it generates and learns is what it does on PyTorch's attention."""

import importlib.util
import re

import pytest

from repository import ROOT

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

PATH = ROOT / "examples" / "transformers_model.py"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="a wheel has no examples")


@pytest.mark.parametrize("options", [[], ["--window", "9"]], ids=["all tokens", "a window"])
def test_the_example(options, capsys):
    spec = importlib.util.spec_from_file_location("transformers_example", PATH)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    sizes = ["--layers", "2", "--hidden", "64", "--heads", "4", "--prompt", "40", "--new", "16"]
    assert example.main([*sizes, *options]) == 0
    printed = capsys.readouterr().out
    assert "16 of 16 tokens are the same" in printed
    losses = [[float(x) for x in line.split()] for line in re.findall(r"loss (.*)", printed)]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][-1] < 0.9 * losses[0][0]
