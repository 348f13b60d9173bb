"""What is measured: one table of workloads, their data, and the float64 result that every peer is checked against.

The result of a backward workload is its gradients (dq, dk, dv), one behind another along the heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Inputs = tuple[Array, Array, Array]  # q (B, Hq, S, D), k and v (B, Hkv, T, D)

TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2, "int8": 5e-2}  # a larger error is a wrong result


@dataclass(frozen=True)
class Workload:
    """One shape of attention. The queries stand at the end of the keys; a causal one lets each see its past only."""

    task: str
    heads: tuple[int, int, int]  # query heads, key/value heads, head_dim
    queries: int
    keys: int
    batch: int = 1
    causal: bool = False
    dtype: str = "float32"
    cache: str = ""  # "int8": quantised keys and values, float32 queries
    cold: bool = False  # a new set of buffers at every call, so that none is in a cache
    overhead: bool = False  # so small that only the cost of a call shows
    backward: bool = False  # the gradients by q, k and v, after a forward call that is not measured

    @property
    def name(self) -> str:
        options = [self.dtype] * (self.dtype != "float32") + [self.cache] * bool(self.cache) + ["cold"] * self.cold
        return " ".join([self.task, "/".join(map(str, self.heads)), *options])

    @property
    def small(self) -> bool:
        """Whether keys and values are of a smaller type than float32."""
        return bool(self.cache) or self.dtype != "float32"

    @property
    def group(self) -> int:
        return self.heads[0] // self.heads[1]

    @property
    def flops(self) -> int:
        """Operations of the two products, over the keys that are attended; of the five of a backward pass."""
        per_head = self.queries * self.keys
        if self.causal:
            per_head -= self.queries * (self.queries - 1) // 2
        return (10 if self.backward else 4) * self.batch * self.heads[0] * per_head * self.heads[2]

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values, each read once; a quantised cache has a float32 scale per token and head."""
        row = self.heads[2] + 4 if self.cache else self.heads[2] * (4 if self.dtype == "float32" else 2)
        return 2 * self.batch * self.heads[1] * self.keys * row

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.cache or self.dtype] * (10 if self.backward else 1)  # sums over rows are that much larger

    def inputs(self, seed: int) -> Inputs:
        """Unit-normal q, k and v of the workload's dtype."""
        rng = np.random.default_rng(seed)
        query_heads, kv_heads, head_dim = self.heads
        sizes = ((query_heads, self.queries), (kv_heads, self.keys), (kv_heads, self.keys))
        q, k, v = (rng.standard_normal((self.batch, *size, head_dim), np.float32) for size in sizes)
        return q.astype(numpy_dtype(self.dtype)), k.astype(numpy_dtype(self.dtype)), v.astype(numpy_dtype(self.dtype))

    def output_gradient(self) -> Array:
        """What a backward pass starts from: unit-normal, (B, Hq, S, D), of the workload's dtype."""
        shape = (self.batch, self.heads[0], self.queries, self.heads[2])
        return np.random.default_rng(1000).standard_normal(shape, np.float32).astype(numpy_dtype(self.dtype))

    def mask(self) -> Array | None:
        """Which keys each query sees, (S, T) bool; None: all."""
        if not self.causal:
            return None
        return np.arange(self.keys) <= np.arange(self.queries)[:, None] + self.keys - self.queries


def numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def reference(workload: Workload, inputs: Inputs) -> Array:
    """The result in float64, some rows of every head, (B, H, rows, D)."""
    if workload.backward:
        return stacked(gradients(workload, inputs))[:, :, checked_rows(workload.queries)]
    q, k, v = inputs
    rows = checked_rows(workload.queries)
    mask, group = workload.mask(), workload.group
    expected = np.empty((*q.shape[:2], len(rows), q.shape[3]))
    for b, h in np.ndindex(k.shape[:2]):
        heads = slice(h * group, (h + 1) * group)
        query, key, value = (x.astype(np.float64) for x in (q[b, heads][:, rows], k[b, h], v[b, h]))
        scores = query @ key.T / np.sqrt(workload.heads[2])
        if mask is not None:
            scores = np.where(mask[rows], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        expected[b, heads] = weights @ value / weights.sum(-1, keepdims=True)
    return expected


def gradients(workload: Workload, inputs: Inputs) -> Inputs:
    """(dq, dk, dv) in float64, of the shapes of the inputs."""
    q, k, v = inputs
    dout, mask, scale = workload.output_gradient(), workload.mask(), workload.heads[2] ** -0.5
    dq, dk, dv = (np.zeros(x.shape) for x in inputs)
    for b, h in np.ndindex(q.shape[:2]):
        kv = h // workload.group
        query, key, value, by_out = (x.astype(np.float64) for x in (q[b, h], k[b, kv], v[b, kv], dout[b, h]))
        scores = query @ key.T * scale
        if mask is not None:
            scores[~mask] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        by_weight = by_out @ value.T
        by_score = weights * (by_weight - (weights * by_weight).sum(-1, keepdims=True)) * scale
        dq[b, h] = by_score @ key
        dk[b, kv] += by_score.T @ query
        dv[b, kv] += weights.T @ by_out
    return dq, dk, dv


def stacked(gradients: Inputs) -> Array:
    """Gradients as one array (B, Hq + 2 Hkv, S, D), of workloads with as many queries as keys."""
    return np.concatenate(gradients, axis=1)


def error(output: Array, expected: Array, queries: int) -> float:
    """Largest absolute difference of a result from its reference; infinite for a wrong shape or NaN."""
    batch, heads, _, head_dim = expected.shape
    if output.shape != (batch, heads, queries, head_dim):
        return float("inf")
    difference = np.abs(output[:, :, checked_rows(queries)].astype(np.float64) - expected).max()
    return float(np.nan_to_num(difference, nan=np.inf))


def checked_rows(queries: int) -> Array:
    """16 query rows from the first to the last, or all of fewer."""
    return np.unique(np.linspace(0, queries - 1, 16).astype(int))


LLAMA = (32, 8, 128)
LLAMA_64 = (32, 8, 64)
MULTI_HEAD = (12, 12, 64)
MULTI_QUERY = (8, 1, 128)


def prefill(n: int, heads: tuple[int, int, int], **options: Any) -> Workload:
    return Workload(f"prefill {n}", heads, n, n, causal=True, **options)


def decode(n: int, heads: tuple[int, int, int], **options: Any) -> Workload:
    batch = options.get("batch", 1)
    return Workload(f"decode {n}" if batch == 1 else f"decode {batch} x {n}", heads, 1, n, **options)


FLOAT32 = (
    *(prefill(n, heads) for heads in (LLAMA, LLAMA_64, MULTI_HEAD, MULTI_QUERY) for n in (128, 512, 2048)),
    Workload("full 1024", MULTI_HEAD, 1024, 1024),
    Workload("full 8 x 128", MULTI_HEAD, 128, 128, batch=8),
    *(Workload("chunk 256 over 4096", heads, 256, 4096 + 256, causal=True) for heads in (LLAMA, LLAMA_64)),
    Workload("8 queries over 4096", LLAMA, 8, 4096, causal=True),
    *(decode(n, LLAMA) for n in (128, 1024, 4096, 32768)),
    *(decode(4096, heads) for heads in (MULTI_HEAD, MULTI_QUERY)),
    *(decode(n, LLAMA, batch=8) for n in (1024, 4096)),
)
SMALLER_TYPES = (
    *(make(n, LLAMA, dtype=dtype) for make, n in ((prefill, 512), (decode, 4096)) for dtype in ("float16", "bfloat16")),
    *(decode(n, LLAMA, cache="int8") for n in (4096, 32768)),
)
COLD = tuple(
    replace(workload, cold=True)
    for workload in (
        prefill(128, LLAMA),
        *(decode(n, LLAMA) for n in (128, 1024, 4096)),
        *(decode(4096, heads) for heads in (MULTI_HEAD, MULTI_QUERY)),
        *(decode(4096, LLAMA, dtype=dtype) for dtype in ("float16", "bfloat16")),
        decode(4096, LLAMA, cache="int8"),
    )
)
BACKWARD = (
    *(replace(prefill(n, LLAMA), task=f"backward {n}", backward=True) for n in (512, 2048)),
    Workload("backward full 1024", MULTI_HEAD, 1024, 1024, backward=True),
    Workload("backward 4 x 512", MULTI_HEAD, 512, 512, batch=4, causal=True, backward=True),
    *(
        Workload("backward 512", LLAMA, 512, 512, causal=True, dtype=dtype, backward=True)
        for dtype in ("float16", "bfloat16")
    ),
)
TINY = (
    Workload("tiny 1 over 16", (4, 2, 32), 1, 16, overhead=True),
    Workload("tiny 4 over 6", (9, 3, 8), 4, 6, overhead=True),
)
WORKLOADS = (*FLOAT32, *SMALLER_TYPES, *COLD, *BACKWARD, *TINY)
