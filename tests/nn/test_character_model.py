"""The example that trains a character model: its gradients, that it learns, and what it draws."""

import importlib.util
import re
import sys

import numpy as np
import pytest

from repository import ROOT


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("character_example", ROOT / "examples" / "character_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gradients_are_slopes(example, rng):
    """Of each parameter along its gradient, where they are steepest: float32 leaves some digits of differences."""
    model = example.Model(characters=11, tokens=12, width=32, heads=4, layers=2)
    parameters = model.parameters()
    for x in parameters.values():  # of no size that training starts with, such as 0
        x += 0.1 * rng.standard_normal(x.shape, np.float32)
    tokens = rng.integers(0, 11, (3, 13))
    gradients = model.loss(tokens)[1]()
    assert set(gradients) == set(parameters)
    for name, x in parameters.items():
        length = np.linalg.norm(gradients[name])
        assert length > 1e-3, name
        step = 0.02 / length * gradients[name]
        start, ends = x.copy(), []
        for sign in (1, -1):
            x[...] = start + sign * step
            ends.append(model.loss(tokens)[0])
        x[...] = start
        assert ends[0] - ends[1] == pytest.approx(0.04 * length, rel=0.02, abs=1e-5), name


def test_what_is_written_follows_from_the_model(example, rng):
    """Token by token with caches as all at once: the likeliest token of each step, at a low temperature."""
    model = example.Model(characters=11, tokens=12, width=32, heads=4, layers=2)
    for x in model.parameters().values():
        x += 0.3 * rng.standard_normal(x.shape, np.float32)
    tokens = model.write(np.array([3, 1]), 20, np.random.default_rng(0), temperature=1e-4)
    assert len(tokens) == 12
    for n in range(2, 12):
        losses = [model.loss(np.array([[*tokens[:n], c]]))[0] for c in range(11)]
        assert np.argmin(losses) == tokens[n]


def test_it_learns(example, monkeypatch, capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcdefghij, " * 200)
    sizes = ["--steps", "40", "--batch", "4", "--tokens", "32", "--width", "32", "--heads", "4"]
    monkeypatch.setattr(sys, "argv", ["character_model.py", "--text", str(text), *sizes])
    example.main()
    (unseen,) = map(float, re.findall(r"unseen (\S+)", capsys.readouterr().out)[-1:])
    assert unseen < 0.5 * np.log(12)


def test_the_pages_of_the_project_and_a_plot(example, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "loss.svg"
    arguments = ["--steps", "3", "--batch", "2", "--tokens", "16", "--width", "32", "--heads", "4", "--plot", str(path)]
    monkeypatch.setattr(sys, "argv", ["character_model.py", *arguments])
    example.main()
    assert "step    3" in capsys.readouterr().out
    assert "cross entropy" in path.read_text()
