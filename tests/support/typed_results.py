"""What type checkers must find out about results: checked by mypy, never run."""

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import gqa

Array = npt.NDArray[Any]


def results(q: Array, k: Array, v: Array, maybe: bool, cache: gqa.KVCache, pages: gqa.PagedKVCache) -> None:
    assert_type(cache.attend(q, k, v), Array)
    assert_type(cache.attend(q, lengths=[1], causal=False, return_lse=False), Array)
    assert_type(cache.attend(q, return_lse=True), tuple[Array, Array])
    assert_type(cache.attend(q, return_lse=maybe), Array | tuple[Array, Array])
    assert_type(pages.attend([0], q, [1]), Array)
    assert_type(pages.attend([0], q, [1], k, v, mask=None, return_lse=True), tuple[Array, Array])
    assert_type(gqa.varlen_attention(q, k, v, [0, 1], [0, 1], window=(3, None)), Array)
    assert_type(gqa.varlen_attention(q, k, v, [0, 1], [0, 1], num_threads=1, return_lse=True), tuple[Array, Array])
    assert_type(cache.append(k, v).truncate(3).select([0]).grow(5).reset().copy(), gqa.KVCache)
    assert_type(pages.append([0], k, v, [1]).truncate(0, 1).free(0).copy(), gqa.PagedKVCache)
    assert_type(cache.dtype, np.dtype[Any])
    assert_type(gqa.info()["isas"], list[str])
    assert_type(gqa.onnx.attention(q, k, v).Y, Array)
    assert_type(gqa.nn.MultiHeadAttention(2, 8)(q), Array)


def refused(q: Array, cache: gqa.KVCache) -> None:
    cache.attend(q, casual=True)  # type: ignore[call-overload]
    cache.attend(q, causal="yes")  # type: ignore[call-overload]
