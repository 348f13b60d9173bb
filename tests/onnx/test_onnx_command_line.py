"""``python -m gqa run``, and gqa.onnx where the package onnx is not installed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import child
import gqa.onnx
from compare import assert_same_bits
from gqa.__main__ import main

ATTENTION = """
    <ir_version: 10, opset_import: ["": 24]>
    g (float[B, 4, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v) => (float[B, 4, S, 8] y)
    { y = Attention<is_causal = 1>(q, k, v) }
"""


@pytest.fixture
def tensors(rng):
    return {name: rng.standard_normal((2, heads, 5, 8)).astype(np.float32) for name, heads in zip("qkv", (4, 2, 2))}


def save(text, path):
    """Write a model to a file."""
    onnx = pytest.importorskip("onnx")
    onnx.save_model(pytest.importorskip("onnx.parser").parse_model(text), path)


@pytest.fixture
def files(tensors, tmp_path):
    """model.onnx and inputs.npz, and the arguments that name them."""
    save(ATTENTION, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", **tensors)
    return ["run", str(tmp_path / "model.onnx"), str(tmp_path / "inputs.npz"), "-o", str(tmp_path / "outputs.npz")]


def test_command_line(files, tensors):
    code = "import runpy, sys; sys.argv[0] = 'gqa'; runpy.run_module('gqa', run_name='__main__', alter_sys=True)"
    result = child.start(code, *files)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    with np.load(files[-1]) as outputs:
        assert outputs.files == ["y"]
        assert_same_bits(outputs["y"], gqa.onnx.attention(*tensors.values(), is_causal=1).Y)


def test_command_line_reads_and_writes_bfloat16(rng, files):
    """NumPy's files do not know the type; the model does. An output may have any name."""
    text = ATTENTION.replace("float", "bfloat16").replace("y", "file")
    save(text, files[1])
    tensors = [rng.standard_normal((2, heads, 5, 8)).astype(ml_dtypes.bfloat16) for heads in (4, 2, 2)]
    np.savez(files[2], **dict(zip("qkv", tensors)))
    assert main(files) == 0
    with np.load(files[-1]) as outputs:
        got = outputs["file"].view(ml_dtypes.bfloat16)
    assert_same_bits(got, gqa.onnx.attention(*tensors, is_causal=1).Y)


def refused(capsys, arguments):
    """The line that the command prints as it refuses; it writes nothing."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m gqa run: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_command_line_errors(files, capsys, tmp_path, tensors):
    output = tmp_path / "outputs.npz"
    del tensors["k"]
    np.savez(files[2], **tensors)
    assert "input 'k' is missing, the model takes q, k, v" in refused(capsys, files)
    np.savez(files[2], **tensors, k=np.ones(3))
    assert "input 'k' has dtype float64" in refused(capsys, files)
    np.savez(files[2], **tensors, k=np.array([{}], object))
    assert "inputs.npz is not an .npz file of arrays" in refused(capsys, files)
    np.save(tmp_path / "one.npy", np.ones(3))
    for name, content in (("text", b"text"), ("empty", b""), ("cut", (tmp_path / "inputs.npz").read_bytes()[:99])):
        (tmp_path / name).write_bytes(content)
    for name in ("one.npy", "text", "empty", "cut"):
        assert f"{name} is not an .npz file of arrays" in refused(
            capsys, [*files[:2], str(tmp_path / name), *files[3:]]
        )
    assert "No such file" in refused(capsys, [*files[:2], str(tmp_path / "nowhere.npz"), *files[3:]])
    assert "nowhere" in refused(capsys, ["run", str(tmp_path / "nowhere.onnx"), *files[2:]])
    assert "cannot be read as an ONNX model" in refused(capsys, ["run", str(tmp_path / "text"), *files[2:]])
    assert not output.exists()


# ---- without the package onnx ---------------------------------------------------------------------------------


def test_without_onnx():
    code = """
        import sys
        sys.modules["onnx"] = None
        import gqa.onnx, numpy as np
        Q = K = V = np.ones((1, 1, 2, 4), np.float32)
        print(gqa.onnx.attention(Q, K, V).Y.sum())
        print(gqa.onnx.infer_shapes("Attention", {"Q": Q.shape, "K": K.shape, "V": V.shape},
              dict.fromkeys("QKV", "float32"), {})["Y"])
        for call in (gqa.onnx.reference_ops, lambda: gqa.onnx.run("model.onnx", {})):
            try:
                call()
            except ModuleNotFoundError as error:
                print(error)
        from gqa.__main__ import main
        print(main(["run", "model.onnx", "inputs.npz", "-o", "outputs.npz"]))
    """
    result = child.start(code)
    message = "ONNX models need the package onnx: pip install 'gqa[onnx]'"
    assert result.stdout.splitlines() == ["8.0", "((1, 1, 2, 4), 'float32')", message, message, "2"], result.stderr
    assert result.stderr == f"python -m gqa run: {message}\n"


def test_importing_it_does_not_import_onnx():
    code = "import sys, gqa.onnx; print([m for m in ('onnx', 'ml_dtypes', 'google') if m in sys.modules])"
    assert child.output_of(code) == "[]"
