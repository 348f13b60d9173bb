"""GroupQueryAttention once its arguments are checked: queries over the rows of a past and over new tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gqa.arguments import Array
from gqa.onnx.group_query_shapes import GroupQueryAttributes, GroupQueryShapes
from gqa.onnx.quantization import Quantization
from gqa.onnx.scores import allowed_keys, masked, scores, soft_capped, softmax
from gqa.onnx.timeline import Place, sequences_and_runs
from gqa.quantize import Quantized
from gqa.sequences import Tensor, attend_sequences, contiguous


@dataclass(frozen=True)
class CachedAttention:
    """Queries (B, S, Hq, D); keys and values of the past and of the new tokens, (B, L, Hkv, D), int8 with formats."""

    q: Array
    keys: tuple[Array, Array]
    values: tuple[Array, Array]
    formats: tuple[Quantization, Quantization] | None
    bias: Array | None  # (1 or B, 1 or Hq, S, total)
    sinks: Array | None  # (Hq,)
    total: int
    places: list[Place]
    sizes: GroupQueryShapes
    attributes: GroupQueryAttributes

    def output(self) -> Array:
        """The operator's output (B, S, Hq * D)."""
        window = int(self.attributes.local_window_size)
        k_format, v_format = self.formats or (None, None)
        sequences, runs = sequences_and_runs(self.places, self.sizes, self.attributes)
        out: Array = attend_sequences(
            self._queries(),
            [(_tensor(k, k_format), _tensor(v, v_format)) for k, v in zip(self.keys, self.values)],
            sequences,
            runs,
            mask=self.bias,
            mask_shape=(self.sizes.batch, self.sizes.queries, self.total),
            causal=self.attributes.causal == 1,
            window=(window - 1, None) if window > 0 else None,
            scale=self._scale,
            softcap=self.attributes.softcap,
            sinks=self.sinks,
            out=None,
            return_lse=False,
            num_threads=None,
        )
        if v_format is not None and v_format.per_channel:
            out *= v_format.channel_scale(self.sizes.query_heads)
        return out.reshape(self.sizes.output).astype(self.q.dtype, copy=False)

    def scores_or_probabilities(self) -> Array:
        """The operator's output_qk (B, Hq, S, total): 0 where a key is not attended."""
        sizes, attributes = self.sizes, self.attributes
        q = self._queries().swapaxes(1, 2)
        q = q.astype(np.float64 if q.dtype == np.float64 else np.float32)
        scale = self._scale * (float(self.formats[0].row_scale) if self.formats else 1.0)
        left = int(attributes.local_window_size) - 1 if attributes.local_window_size >= 0 else None
        result = np.zeros((sizes.batch, sizes.query_heads, sizes.queries, self.total), self.q.dtype)
        for b, place in enumerate(self.places):
            first, stored, keys = place.first, place.stored, place.end - place.first
            past = keys if sizes.shared else stored
            parts = (self.keys[0][b : b + 1, :past], self.keys[1][b : b + 1, : keys - past])
            allowed = allowed_keys(
                sizes.queries, keys, np.array([stored]), np.array([keys]), left, 0 if attributes.causal else None
            )
            bias = self.bias
            if bias is not None:
                bias = bias[b if len(bias) > 1 else 0, :, :, first : first + keys]
            with np.errstate(all="ignore"):
                x = soft_capped(scores(q[b : b + 1], [k.swapaxes(1, 2) for k in parts], scale), attributes.softcap)
                if attributes.qk_output == 2:
                    x = softmax(masked(x, bias, allowed), self.sinks)
                else:
                    x = np.where(allowed, x if bias is None else x + bias.astype(x.dtype), 0)
                result[b, :, :, first : first + keys] = x[0]
        return result

    @property
    def _scale(self) -> float:
        """What scores are multiplied by, scales of quantised keys aside."""
        return float(self.attributes.scale or 1 / np.sqrt(max(self.sizes.head_dim, 1)))

    def _queries(self) -> Array:
        """q, in float32 at least and with the scales of the keys' channels where any scales are per channel."""
        if self.formats is None or not any(form.per_channel for form in self.formats):
            return self.q
        q = self.q.astype(np.float64 if self.q.dtype == np.float64 else np.float32)
        k_format = self.formats[0]
        return q * k_format.channel_scale(self.sizes.query_heads) if k_format.per_channel else q


def _tensor(x: Array, form: Quantization | None) -> Tensor:
    return contiguous(x if form is None else Quantized(x, np.broadcast_to(form.row_scale, x.shape[:3])))
