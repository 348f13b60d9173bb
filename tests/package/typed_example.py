"""Programs as users write them, for type checkers: what each call gives, without an Any. Never run."""

# pyright: strict

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import gqa
import gqa.nn
import gqa.onnx

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]


def whole(q: Array, k: Array, v: Array, with_lse: bool) -> None:
    assert_type(gqa.attention(q, k, v), Array)
    assert_type(gqa.attention(q, gqa.quantize(k), v, causal=True, window=[3, 0], layout="bshd"), Array)
    assert_type(gqa.attention(q, past_key=k, past_value=v, kv_lengths=[3], query_offset=2, return_lse=True), Pair)
    assert_type(gqa.attention(q, k, v, mask=q > 0, sinks=None, return_lse=with_lse), Array | Pair)
    assert_type(gqa.attention(q, k, v, out=np.empty_like(q), scale=0.1, softcap=30, num_threads=2), Array)


class Tensor:
    """What gqa needs of another library's tensor."""

    def __dlpack__(
        self, *, stream: int | None = None, max_version: tuple[int, int] | None = None, copy: bool | None = None
    ) -> object:
        raise NotImplementedError


def foreign(x: Tensor, cache: gqa.KVCache) -> None:
    assert_type(gqa.attention(x, x, gqa.quantize(np.ones((1, 2, 3, 4))), mask=x, sinks=x), Array)
    assert_type(gqa.varlen_attention(x, x, x, [0, 3], [0, 3], return_lse=True), Pair)
    assert_type(cache.append(x, x).attend(x), Array)
    assert_type(gqa.rotary(x, x, x), Array)
    assert_type(gqa.quantize(x), gqa.Quantized)
    assert_type(gqa.merge_states([x, x], [x, x]), Pair)
    assert_type(gqa.onnx.attention(x, x, x, past_key=x, past_value=x).Y, Array)
    assert_type(gqa.onnx.group_query_attention(x, x, x, num_heads=8, kv_num_heads=2).output, Array)
    assert_type(gqa.onnx.flex_attention(x, x, x), Array)
    assert_type(gqa.onnx.run("model.onnx", {"x": x}), dict[str, Array])
    assert_type(gqa.nn.MultiHeadAttention(8, 256)(x, x, mask=x), Array)


def numbers_of_numpy(q: Array, k: Array, v: Array) -> None:
    real, whole, flag = np.float32(0.5), np.int64(3), np.bool_(True)
    assert_type(gqa.attention(q, k, v, scale=real, softcap=real, causal=flag, window=(whole, None)), Array)
    assert_type(gqa.varlen_attention(q, k, v, [0, whole], [0, whole], scale=real, num_threads=whole), Array)


def packed(q: Array, k: Array, v: Array, with_lse: bool) -> None:
    starts = [0, 3, 7]
    assert_type(gqa.varlen_attention(q, k, v, starts, starts), Array)
    assert_type(gqa.varlen_attention(q, k, v, starts, starts, causal=True, window=(3, None), return_lse=False), Array)
    assert_type(gqa.varlen_attention(q, k, v, np.array(starts), starts, out_dtype="float32", return_lse=True), Pair)
    assert_type(gqa.varlen_attention(q, k, v, starts, starts, return_lse=with_lse), Array | Pair)


def cached(q: Array, k: Array, v: Array, with_lse: bool) -> None:
    cache = gqa.KVCache(2, 8, 4096, 128, dtype="float16", window=512, layout="bshd")
    assert_type(cache.append(k, v).append(k, v, lengths=[1, 0]), gqa.KVCache)
    assert_type(cache.attend(q, k, v), Array)
    assert_type(cache.attend(q, k, v, softcap=30.0, out_dtype=np.float32, return_lse=True), Pair)
    assert_type(cache.attend(q, lengths=None, return_lse=with_lse), Array | Pair)
    assert_type(cache.truncate([3, 4]).select([0]).grow(8192).reset().copy(), gqa.KVCache)
    assert_type(cache.lengths, npt.NDArray[np.int64])
    assert_type(cache.keys, Array | gqa.Quantized)
    assert_type(cache.nbytes, int)
    assert_type(cache.layout, str)
    assert_type(cache.dtype, np.dtype[Any])


def refused(q: Array, cache: gqa.KVCache) -> None:
    cache.attend(q, casual=True)  # type: ignore[call-overload]
    cache.attend(q, causal="yes")  # type: ignore[call-overload]


def paged(q: Array, k: Array, v: Array, with_lse: bool) -> None:
    cache = gqa.PagedKVCache(64, 16, 8, 128, dtype="int8")
    one = cache.add()
    assert_type(one, int)
    assert_type(cache.append([one], k, v, [3]).truncate(one, 2), gqa.PagedKVCache)
    assert_type(cache.fork(one), int)
    assert_type(cache.attend([one], q, [1], k, v), Array)
    assert_type(cache.attend([one], q, [1], return_lse=True), Pair)
    assert_type(cache.attend([one], q, [1], return_lse=with_lse), Array | Pair)
    assert_type(cache.lengths, dict[int, int])
    assert_type(cache.free_pages, int)
    assert_type(cache.block_tables, dict[int, npt.NDArray[np.int64]])
    assert_type(cache.free(one), gqa.PagedKVCache)


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def scored(q: Array, k: Array, v: Array, slopes: Array, cache: gqa.KVCache) -> None:
    program = gqa.trace(lambda score, b, h, q_idx, kv_idx: score - slopes[h] * (q_idx - kv_idx), causal)
    assert_type(repr(program), str)
    assert_type(gqa.attention(q, k, v, score_mod=program), Array)
    assert_type(gqa.attention(q, k, v, score_mod=lambda s, b, h, i, j: s * 2, mask_mod=causal, return_lse=True), Pair)
    assert_type(gqa.varlen_attention(q, k, v, [0, 3], [0, 3], mask_mod=causal), Array)
    assert_type(cache.attend(q, k, v, score_mod=program, mask_mod=None), Array)


def pieces(outs: list[Array], lses: list[Array], x: Array) -> None:
    assert_type(gqa.merge_states(outs, tuple(lses), out=x, dtype="float32", num_threads=2), Pair)
    cos, sin = gqa.rotary_tables(4096, 128, base=500000.0, scaling={"rope_type": "linear", "factor": 2.0})
    assert_type(gqa.rotary(x, cos, sin, positions=7, layout="bshd"), Array)
    quantized = gqa.quantize(x)
    assert_type(quantized, gqa.Quantized)
    assert_type(quantized.dequantize(), Array)
    shapes = gqa.infer_shapes({"q": (1, 8, 1, 64), "k": (1, 2, 9, 64), "v": (1, 2, 9, 64)}, dict.fromkeys("qkv", "f4"))
    assert_type(shapes, dict[str, tuple[tuple[int, ...], str]])
    assert_type(gqa.get_num_threads(), int)
    assert_type(gqa.info()["isas"], list[str])


def layer(x: Array) -> None:
    attention = gqa.nn.MultiHeadAttention(8, 256, num_kv_heads=2, decode=True)
    attention.init_cache((1, 64, 256))
    assert_type(attention(x, is_causal=True), Array)


def gradients(dout: Array, q: Array, k: Array, x: Tensor) -> None:
    out, lse = gqa.attention(q, k, k, causal=True, return_lse=True)
    found = gqa.attention_vjp(dout, q, k, k, out, lse, causal=True, mask_grad=False, num_threads=2)
    assert_type(found, gqa.AttentionGradients)
    assert_type(found.dq, Array)
    assert_type(found.dsinks, Array | None)
    assert_type(gqa.varlen_attention_vjp(x, x, x, x, [0, 3], [0, 3], x, x, dlse=x), gqa.AttentionGradients)
    y, pullback = gqa.nn.MultiHeadAttention(8, 256).vjp(q, is_causal=True)
    assert_type(y, Array)
    by_layer = pullback(x)
    assert_type(by_layer, gqa.nn.MultiHeadAttentionGradients)
    assert_type(by_layer.inputs_k, Array | None)
    assert_type(by_layer.parameters, dict[str, dict[str, Array]])


def operators(x: Array, path: str) -> None:
    outputs = gqa.onnx.attention(x, x, x, past_key=x, past_value=x, is_causal=1)
    assert_type(outputs, gqa.onnx.AttentionOutputs)
    assert_type(outputs.Y, Array)
    assert_type(outputs.present_key, Array | None)
    assert_type(gqa.onnx.group_query_attention(x, x, x, num_heads=8, kv_num_heads=2).output, Array)
    assert_type(gqa.onnx.flex_attention(x, x, x, score_mod=np.tanh), Array)
    assert_type(gqa.onnx.run(path, {"x": x}), dict[str, Array])
