"""``python -m gqa``: what this build is, and how right and fast. ``python -m gqa run``: runs an ONNX model."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import gqa

Array = npt.NDArray[Any]

# The attention of one layer of Llama 3 8B.
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
PROMPT, CACHE = 512, 4096

# (batch, query heads, KV heads, queries, keys, head_dim) of the self-check: each loop of the kernels, and their seams.
CHECKS = [
    (1, 1, 1, 1, 1, 1), (2, 9, 3, 4, 6, 8), (1, 8, 2, 1, 300, 64), (2, 8, 8, 17, 33, 80), (1, 32, 8, 1, 1700, 128),
    (1, 8, 1, 70, 200, 128), (1, 4, 2, 130, 130, 40),
]  # fmt: skip
TOLERANCE = {"float32": 2e-6, "float64": 1e-14, "float16": 2e-3}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gqa", description="Grouped-query attention for NumPy.")
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="run an ONNX model, its attention on the native kernel")
    run.add_argument("model", help="the .onnx file")
    run.add_argument("inputs", help="an .npz file with one array for each input")
    run.add_argument("-o", "--output", required=True, help="the .npz file to write the outputs to")
    options = parser.parse_args(arguments)
    if options.command == "run":
        return run_model(options.model, options.inputs, options.output)
    return report()


def run_model(model: str, inputs: str, output: str) -> int:
    """The exit status of `run`: 2, and a line to standard error, for what the caller can mend."""
    from gqa.onnx.models.running import run_files

    try:
        run_files(model, inputs, output)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"python -m gqa run: {error}", file=sys.stderr)
        return 2
    return 0


def report() -> int:
    """Print what this build is, check it against float64, and time a layer next to plain NumPy."""
    about = gqa.info()
    print(f"gqa {about['version']}: {about['isa']} of {', '.join(about['isas'])}; {about['threads']} threads, ", end="")
    print("OpenMP" if about["openmp"] else "no OpenMP: one thread unless told otherwise")
    good = self_check()

    rng = np.random.default_rng(0)
    print(f"\nA Llama-3-8B layer: {HEADS} query heads, {KV_HEADS} KV heads, head_dim {HEAD_DIM}, float32, batch 1")
    print(f"{'':28}{'gqa':>12}{'':24}{'max error':>11}{'NumPy':>14}")
    time_layer(f"prefill of {PROMPT} tokens", rng, queries=PROMPT, keys=PROMPT)
    time_layer(f"decode over {CACHE} keys", rng, queries=1, keys=CACHE)
    return 0 if good else 1


def self_check() -> bool:
    """Compare small problems of every kind with float64; print the outcome."""
    rng = np.random.default_rng(1)
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for batch, heads, kv_heads, queries, keys, head_dim in CHECKS:
        shapes = (batch, heads, queries, head_dim), (batch, kv_heads, keys, head_dim), (batch, kv_heads, keys, head_dim)
        for dtype in TOLERANCE:
            q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
            for causal in (False, True):
                error = np.abs(gqa.attention(q, k, v, causal=causal) - definition(q, k, v, causal)).max()
                worst[dtype] = max(worst[dtype], float(error))
    good = all(worst[dtype] <= TOLERANCE[dtype] for dtype in TOLERANCE)
    errors = ", ".join(f"{dtype} {error:.1e}" for dtype, error in worst.items())
    print(f"self-check against float64: {'passed' if good else 'FAILED'}, max error {errors}")
    return good


def time_layer(name: str, rng: np.random.Generator, *, queries: int, keys: int) -> None:
    """Print milliseconds, GFLOP/s, GB/s of cache and the error of one causal layer, and NumPy's time for the same."""
    q = rng.standard_normal((1, HEADS, queries, HEAD_DIM), np.float32)
    k, v = rng.standard_normal((2, 1, KV_HEADS, keys, HEAD_DIM), np.float32)
    mine = median_time(lambda: gqa.attention(q, k, v, causal=True))
    numpy = median_time(lambda: plain_numpy(q, k, v))
    attended = queries * keys - queries * (queries - 1) // 2
    flops, cache = 4 * HEADS * HEAD_DIM * attended, k.nbytes + v.nbytes
    error = np.abs(gqa.attention(q, k, v, causal=True) - definition(q, k, v, True)).max()
    print(
        f"{name:28}{mine * 1e3:9.2f} ms {flops / mine / 1e9:8.1f} GFLOP/s{cache / mine / 1e9:7.1f} GB/s{error:9.1e}"
        f"{numpy * 1e3:11.2f} ms  ({numpy / mine:.1f} times as long)"
    )


def median_time(call: Callable[[], Any], seconds: float = 0.6) -> float:
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plain_numpy(q: Array, k: Array, v: Array) -> Array:
    """Causal attention as one writes it in NumPy, at its best: the group folded into the rows, nothing repeated."""
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    scores = (q * head_dim**-0.5).reshape(batch, kv_heads, -1, head_dim) @ k.swapaxes(2, 3)
    if queries > 1:
        hidden = np.arange(keys) > np.arange(queries)[:, None] + keys - queries
        np.copyto(scores.reshape(batch, kv_heads, -1, queries, keys), -np.inf, where=hidden)
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    out: Array = (scores @ v / total).reshape(batch, heads, queries, -1)
    return out


def definition(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """Attention in float64, one head at a time."""
    group, queries, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    hidden = np.arange(keys) > np.arange(queries)[:, None] + keys - queries
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h in np.ndindex(*q.shape[:2]):
        scores = q[b, h].astype(np.float64) @ k[b, h // group].T.astype(np.float64) * q.shape[3] ** -0.5
        if causal:
            scores[hidden] = -np.inf
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isinf(top), 0, top))
        total = weights.sum(-1, keepdims=True)
        out[b, h] = weights @ v[b, h // group].astype(np.float64) / np.where(total == 0, 1, total)
    return out


if __name__ == "__main__":
    sys.exit(main())
