"""GroupQueryAttention once its arguments are checked: queries over a cache with the new tokens, or next to them."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from gqa import _core
from gqa.arguments import Array
from gqa.onnx.group_query.attributes import GroupQueryAttributes
from gqa.onnx.group_query.quantized_cache import Quantization
from gqa.onnx.group_query.timeline import Place
from gqa.onnx.scores import allowed_keys, masked, scores, soft_capped, softmax
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.rules import default_scale
from gqa.sequences import RUN_COLUMNS, SEQUENCE_COLUMNS, Tensor, attend_sequences, table

Formats = tuple[Quantization, Quantization]


class Part(NamedTuple):
    """What one batch entry attends, where entries differ in more than their lengths."""

    rows: int  # queries; those past them are padding
    origin: int  # position of key 0
    counts: tuple[int, ...]  # how many keys of each store are listed


class CachedAttention(NamedTuple):
    """Queries (B, S, Hq, D) over keys and values (B, L, Hkv, D), first those of a past if there are two of each."""

    q: Array
    keys: list[Array]  # int8 with formats
    values: list[Array]
    offset: Array | None  # (B,): the position of the first query among the keys; None: the queries are at their end
    lengths: Array | None  # (B,): how many keys there are; None: all
    parts: list[Part] | None  # of each batch entry; None: all rows and all keys, from position 0 on
    bias: Array | None  # (1 or B, 1 or Hq, S, positions)
    sinks: Array | None  # (Hq,), float64
    formats: Formats | None
    attributes: GroupQueryAttributes
    num_threads: int | None

    def output(self) -> Array:
        """Attention (B, S, Hq, D), 0 in padding."""
        keys: list[Tensor] = list(self.keys)
        values: list[Tensor] = list(self.values)
        if self.formats is not None:
            keys = [_quantized(k, self.formats[0]) for k in self.keys]
            values = [_quantized(v, self.formats[1]) for v in self.values]
        out = self._attended(keys, values) if self.parts is None else self._attended_in_parts(keys, values, self.parts)
        if self.formats is not None and self.formats[1].per_channel:
            out *= self.formats[1].channel_scale(out.shape[2])
        return out

    def output_qk(self) -> Array:
        """Scores or probabilities (B, Hq, S, keys), 0 where a key is not attended."""
        window = self.attributes.window
        q = self._queries().swapaxes(1, 2)
        q = q.astype(np.float64 if q.dtype == np.float64 else np.float32)
        scale = self._scale * (float(self.formats[0].row_scale) if self.formats else 1.0)
        with np.errstate(all="ignore"):
            x = soft_capped(scores(q, [k.swapaxes(1, 2) for k in self.keys], scale), float(self.attributes.softcap))
            lengths = np.full(len(x), x.shape[3]) if self.lengths is None else self.lengths
            allowed = allowed_keys(
                x.shape[2], x.shape[3], lengths - x.shape[2] if self.offset is None else self.offset, lengths,
                None if window is None else window - 1, 0 if self.attributes.causal == 1 else None,
            )  # fmt: skip
            if self.parts is not None:
                rows = np.array([part.rows for part in self.parts])
                allowed &= np.arange(x.shape[2])[:, None] < rows[:, None, None, None]
            if self.attributes.qk_output == 2:
                x = softmax(masked(x, self.bias, allowed), self.sinks)
            else:
                x = np.where(allowed, x if self.bias is None else x + self.bias.astype(x.dtype), 0)
            return x.astype(self.q.dtype, copy=False)

    def _attended(self, keys: list[Tensor], values: list[Tensor]) -> Array:
        window = self.attributes.window
        past_key, past_value = (keys[0], values[0]) if len(keys) == 2 else (None, None)
        lengths = np.zeros(len(self.q), np.int64) if window == 0 else self.lengths
        tensors = (self._queries(), keys[-1], values[-1], past_key, past_value)
        out: Array = _core.attention(tensors, self.offset, lengths, self._options)
        return out

    def _attended_in_parts(self, keys: list[Tensor], values: list[Tensor], parts: list[Part]) -> Array:
        """Padding is told apart, and keys are numbered by position: both decide how a sequence is computed."""
        batch, queries, window = *self.q.shape[:2], self.attributes.window
        ends = [sum(part.counts) for part in parts] if self.lengths is None else self.lengths.tolist()
        offsets = [end - queries for end in ends] if self.offset is None else self.offset.tolist()
        sequences = [
            (b, 0, rows, queries - rows, origin, offset, 0 if window == 0 else end, b, origin, len(keys))
            for b, ((rows, origin, _), offset, end) in enumerate(zip(parts, offsets, ends))
        ]
        runs = [(store, b, 0, count) for b, part in enumerate(parts) for store, count in enumerate(part.counts)]
        positions = 0 if self.bias is None else self.bias.shape[3]
        out = attend_sequences(
            self._queries(), list(zip(keys, values)), table(sequences, SEQUENCE_COLUMNS), table(runs, RUN_COLUMNS),
            self._options, mask_shape=(batch, queries, positions),
        )  # fmt: skip
        return cast(Array, out)

    @property
    def _options(self) -> Options:
        window = self.attributes.window
        return Options(
            layout="bshd", causal=self.attributes.causal == 1, window=(window - 1, None) if window else None,
            scale=self._scale, softcap=self.attributes.softcap, num_threads=self.num_threads, mask=self.bias,
            sinks=self.sinks,
        )  # fmt: skip

    @property
    def _scale(self) -> float:
        """What scores are multiplied by, scales of quantised keys aside."""
        return float(self.attributes.scale or default_scale(self.q.shape[3]))

    def _queries(self) -> Array:
        """q, in float32 at least and with the scales of the keys' channels where any scales are per channel."""
        if self.formats is None or not any(form.per_channel for form in self.formats):
            return self.q
        q = self.q.astype(np.float64 if self.q.dtype == np.float64 else np.float32)
        k_format = self.formats[0]
        return q * k_format.channel_scale(q.shape[2]) if k_format.per_channel else q


def over_cache(
    q: Array, k: Array, v: Array, bias: Array | None, sinks: Array | None, formats: Formats | None, found: list[Place],
    total: int, attributes: GroupQueryAttributes, num_threads: int | None,
) -> tuple[Array, Array | None]:  # fmt: skip
    """output (B, S, Hq, D) and output_qk over a cache (B, Hkv, C, D) of all tokens, the new ones too."""
    k, v = k.swapaxes(1, 2)[:, :total], v.swapaxes(1, 2)[:, :total]
    if formats is not None:
        k, v = formats[0].unpack(k), formats[1].unpack(v)
    offset = lengths = parts = None
    if any(place.end != total for place in found):
        offset = np.array([place.before for place in found], np.int64)
        lengths = np.array([place.end for place in found], np.int64)
        rows = [place.end - place.before for place in found]
        if min(rows) < q.shape[1]:
            parts = [Part(row, 0, (k.shape[1],)) for row in rows]
    call = CachedAttention(q, [k], [v], offset, lengths, parts, bias, sinks, formats, attributes, num_threads)
    return call.output(), call.output_qk() if attributes.qk_output else None


def over_sliding_cache(
    q: Array, keys: tuple[Array, Array], values: tuple[Array, Array], bias: Array | None, sinks: Array | None,
    formats: Formats | None, found: list[Place], total: int, attributes: GroupQueryAttributes, num_threads: int | None,
) -> tuple[Array, Array | None]:  # fmt: skip
    """The same over what a past (B, Hkv, C, D) holds of earlier tokens and over the new ones (B, S, Hkv, D).

    Every batch entry may hold others: the columns of the bias, which are positions, differ from one to the next.
    """
    past_k, past_v = keys[0].swapaxes(1, 2), values[0].swapaxes(1, 2)
    if formats is not None:
        past_k, past_v = formats[0].unpack(past_k), formats[1].unpack(past_v)
    k, v, options = [past_k, keys[1]], [past_v, values[1]], (sinks, formats, attributes, num_threads)
    parts = [Part(end - before, before - stored, (stored, q.shape[1])) for end, before, stored, _, _ in found]
    offset = np.array([place.stored for place in found], np.int64)
    lengths = np.array([place.end - part.origin for place, part in zip(found, parts)], np.int64)
    output = CachedAttention(q, k, v, offset, lengths, parts, bias, *options).output().astype(q.dtype, copy=False)
    if not attributes.qk_output:
        return output, None
    output_qk = np.zeros((len(found), q.shape[2], q.shape[1], total), q.dtype)
    for b, part in enumerate(parts):  # each has other columns
        row, columns = slice(b, b + 1), slice(part.origin, part.origin + sum(part.counts))
        biased = None if bias is None else bias[row if len(bias) > 1 else slice(1), :, :, columns]
        row_k, row_v = ([x[row, :count] for x, count in zip(tensors, part.counts)] for tensors in (k, v))
        call = CachedAttention(q[row], row_k, row_v, offset[row], lengths[row], [part], biased, *options)
        output_qk[row, :, :, columns] = call.output_qk()
    return output, output_qk


def _quantized(x: Array, form: Quantization) -> Quantized:
    return Quantized(x, np.broadcast_to(form.row_scale, x.shape[:3]))
