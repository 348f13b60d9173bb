"""Score functions against options that do the same natively, plain attention, and torch's flex_attention.

    python bench/score_functions.py                        one thread, about a minute
    python bench/score_functions.py --torch                torch's compiled flex_attention as well; needs a C++ compiler
    python bench/score_functions.py --only alibi --threads 2

Calls take turns within each round; ratios are of medians, 1 where both take as long.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gqa

_SPEC = importlib.util.spec_from_file_location(
    "score_functions_example", Path(__file__).parents[1] / "examples" / "score_functions.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
recipes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipes)

SHAPES = {"32/8/128": (32, 8, 128), "12/12/64": (12, 12, 64)}
Run = Callable[[], Any]


def tensors(heads: tuple[int, int, int], queries: int, keys: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, heads[0], queries, heads[2]), np.float32)
    k, v = rng.standard_normal((2, 1, heads[1], keys, heads[2]), np.float32)
    return q, k, v


def pairs(heads: tuple[int, int, int], threads: int) -> dict[str, tuple[Run, Run]]:
    """By name: a call with score functions, and what it is compared with."""
    q, k, v = tensors(heads, 2048, 2048)
    one, keys, values = tensors(heads, 1, 4096)
    table = np.random.default_rng(1).standard_normal((heads[0], 257)).astype(np.float32)
    out = np.empty_like(q)

    attention: Any = gqa.attention  # of which any options may be given

    def call(*arrays: Any, **options: Any) -> Run:
        arrays = arrays or (q, k, v)
        into = {"out": out} if arrays[0] is q else {}
        return lambda: attention(*arrays, **into, num_threads=threads, **options)

    def diagonal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx == kv_idx

    half = [x[:, :, :1024] for x in (q, k, v)]
    long = tensors(heads, 8192, 8192)
    packed_q, packed_k, packed_v = (np.ascontiguousarray(x[0].swapaxes(0, 1)) for x in long)
    ends = np.arange(17) * 512
    ids = np.repeat(np.arange(16), 512)

    def same_document(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ids[q_idx] == ids[kv_idx]

    alibi = recipes.alibi(heads[0])
    return {
        "causal / option": (call(mask_mod=recipes.causal), call(causal=True)),
        "window of 256 / option": (call(mask_mod=recipes.sliding_window(256)), call(causal=True, window=(255, 0))),
        "16 documents of 512 / varlen_attention": (
            lambda: gqa.attention(*long, mask_mod=same_document, num_threads=threads),
            lambda: gqa.varlen_attention(packed_q, packed_k, packed_v, ends, ends, num_threads=threads),
        ),
        "diagonal, 2048 / 1024 tokens": (call(mask_mod=diagonal), call(*half, mask_mod=diagonal)),
        "alibi / none": (call(score_mod=alibi), call()),
        "alibi, causal / causal": (call(score_mod=alibi, causal=True), call(causal=True)),
        "soft cap / option": (call(score_mod=recipes.soft_cap(20.0)), call(softcap=20.0)),
        "relative bias / none": (call(score_mod=recipes.relative_bias(table)), call()),
        "decoding with alibi / without": (call(one, keys, values, score_mod=alibi), call(one, keys, values)),
        "no mask (control)": (call(), call()),
    }


def flex_pairs(heads: tuple[int, int, int], threads: int) -> dict[str, tuple[Run, Run]]:
    """By name: torch's compiled flex_attention, and gqa with the same functions."""
    torch: Any = importlib.import_module("torch")
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # past it torch computes without the compiler
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    q, k, v = tensors(heads, 2048, 2048)
    tq, tk, tv = (torch.from_numpy(x) for x in (q, k, v))
    slopes = torch.exp2(-8 * torch.arange(1, heads[0] + 1) / heads[0])
    table = torch.randn(heads[0], 257)
    ids = torch.repeat_interleave(torch.arange(4), 512)
    scores: dict[str, Any] = {
        "alibi": lambda s, b, h, q, k: s - slopes[h] * (q - k).abs(),
        "soft cap": lambda s, b, h, q, k: 20 * torch.tanh(s / 20),
        "relative bias": lambda s, b, h, q, k: s + table[h, (k - q).clamp(-128, 128) + 128],
        "no mask": None,
    }
    masks: dict[str, Any] = {
        "causal": lambda b, h, q, k: q >= k,
        "window of 256": lambda b, h, q, k: (q >= k) & (q - k < 256),
        "4 documents of 512": lambda b, h, q, k: ids[q] == ids[k],
    }

    def pair(score_mod: Any, mask_mod: Any) -> tuple[Run, Run]:
        blocks = None if mask_mod is None else flex.create_block_mask(mask_mod, None, None, 2048, 2048, device="cpu")
        theirs: Run = lambda: compiled(tq, tk, tv, score_mod=score_mod, block_mask=blocks, enable_gqa=True)  # noqa: E731
        ours: Run = lambda: gqa.attention(  # noqa: E731
            q, k, v, score_mod=score_mod, mask_mod=mask_mod, num_threads=threads
        )
        error = np.abs(np.asarray(theirs()) - ours()).max()
        assert error < 1e-3, error
        return theirs, ours

    return {
        **{f"torch / gqa: {name}": pair(mod, None) for name, mod in scores.items()},
        **{f"torch / gqa: {name}": pair(None, mod) for name, mod in masks.items()},
    }


def ratio(one: Run, other: Run, rounds: int) -> tuple[float, float]:
    """Medians of both in seconds, of turns one after the other, of 30 ms each or a single call."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in (one, other):
        run()
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            run, count = (one, other)[index], 0
            begin = time.perf_counter()
            while count == 0 or time.perf_counter() - begin < 0.03:
                run()
                count += 1
            times[index].append((time.perf_counter() - begin) / count)
    return statistics.median(times[0]), statistics.median(times[1])


def overheads() -> None:
    """What a call costs more for functions that were traced before, and what a trace costs."""
    from gqa.scores import tracing

    q, k, v = tensors((2, 1, 8), 1, 4)
    program, alibi = gqa.trace(recipes.alibi(2)), recipes.alibi(2)

    def seconds(run: Run, count: int) -> float:
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def anew() -> None:
        tracing._traces.clear()
        gqa.trace(alibi)

    plain = seconds(lambda: gqa.attention(q, k, v, num_threads=1), 3000)
    for name, function in (("function", alibi), ("program", program)):
        more = seconds(lambda f=function: gqa.attention(q, k, v, score_mod=f, num_threads=1), 3000) - plain  # type: ignore[misc]
        print(f"a call with the same {name}: {more * 1e6:.1f} us more than {plain * 1e6:.1f}")
    print(f"tracing alibi: {seconds(anew, 300) * 1e6:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression on names")
    parser.add_argument("--shapes", default="", help="a regular expression on heads, such as 12/12/64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", action="store_true")
    arguments = parser.parse_args()
    overheads()
    for shape, heads in SHAPES.items():
        if not re.search(arguments.shapes, shape):
            continue
        found = pairs(heads, arguments.threads)
        if arguments.torch:
            found |= flex_pairs(heads, arguments.threads)
        for name, (one, other) in found.items():
            if re.search(arguments.only, name):
                a, b = ratio(one, other, arguments.rounds)
                print(f"{shape}  {name}: {a / b:.3f}  ({a * 1e3:.3f} / {b * 1e3:.3f} ms)", flush=True)


if __name__ == "__main__":
    main()
