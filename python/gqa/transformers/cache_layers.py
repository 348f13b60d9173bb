"""One layer of a model's cache: keys and values in a gqa cache, and what attention is given of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from gqa.caches import kv
from gqa.quantization import Quantized, quantize
from gqa.torch.modes import is_recorded
from gqa.torch.tensors import as_tensor, as_viewed, named_dtype
from gqa.transformers.deferred import Deferred

# Slots of a ring besides its window: tokens that one call may append and still find all that its first one sees, or
# that assisted decoding may take back.
_SPARE, _SPARE_WHILE_RECORDING = 64, 512


class StoredTokens(Deferred):
    """Keys or values of a layer, (batch, kv_heads, tokens, head_dim), that attention reads where the layer has them.

    Attributes
    ----------
    layer : CacheLayer
    first, end : int
        The tokens of the sequence.
    """

    layer: CacheLayer
    first: int
    end: int
    _which: int

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layer: CacheLayer, which: int, first: int, end: int
    ) -> None:
        self.layer, self._which, self.first, self.end = layer, which, first, end

    def compute(self) -> torch.Tensor:
        if self.end != self.layer.length:
            raise RuntimeError(
                f"keys or values of tokens {self.first} to {self.end} are read after the cache went on to "
                f"{self.layer.length} tokens"
            )
        return self.layer.tokens(self._which, self.first, self.end).to(self.dtype)


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer in a :class:`gqa.KVCache`, appended in place; a ring if the layer has a window.

    Attributes
    ----------
    cache : gqa.KVCache, or None before the first tokens
    length : int
        Tokens that each sequence has been given.
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = True

    cache: kv.KVCache | None

    def __init__(self, *, window: int | None = None, stored: Any = None, capacity: int = 256) -> None:
        self.sliding_window, self.is_sliding = window, window is not None
        self.record_past, self.is_initialized = False, False
        self.cache, self.length = None, 0
        self._stored, self._capacity = named_dtype(stored), capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the cache for tensors of these shapes and dtypes."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, kv_heads, tokens, head_dim = key_states.shape
        self.batch_size = batch
        capacity = max(self._capacity, tokens)
        if self.sliding_window is not None:
            capacity = self.sliding_window + (_SPARE_WHILE_RECORDING if self.record_past else _SPARE)
        self.cache = kv.KVCache(
            batch, kv_heads, capacity, head_dim, v_head_dim=value_states.shape[-1],
            dtype=self._stored or named_dtype(self.dtype), window=self.sliding_window,
        )  # fmt: skip
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new tokens; returns keys and values that stand for all that they may see.

        Those are views of the cache where it holds them as the model has them, and otherwise (rings, other dtypes)
        tensors that gqa's attention recognises, and any other gets copies from.
        """
        if is_recorded((key_states, value_states)):
            raise NotImplementedError(
                "keys or values require a gradient, which a cache does not pass on: call the model within "
                "torch.no_grad() or with use_cache=False"
            )
        if self.cache is None:
            self.lazy_initialization(key_states, value_states)
        assert self.cache is not None
        new = key_states.shape[2]
        count, first = self.get_mask_sizes(new)
        end = self.length + new
        if self.sliding_window is None:
            if end > self.cache.capacity:
                self.cache.grow(max(end, 2 * self.cache.capacity))
        elif count > self.cache.capacity:  # more than the ring can hold at once
            whole = tuple(
                torch.cat([self.tokens(i, first, self.length).to(x.dtype), self._as_stored(x)], dim=2)
                for i, x in enumerate((key_states, value_states))
            )
            self._append(key_states, value_states)
            return whole[0], whole[1]
        self._append(key_states, value_states)
        if self.sliding_window is None and self._keeps(key_states.dtype):
            return as_tensor(self.cache.keys), as_tensor(self.cache.values)  # type: ignore[arg-type]
        batch, kv_heads = key_states.shape[:2]
        keys, values = (
            StoredTokens((batch, kv_heads, count, x.shape[-1]), x.dtype, self, i, first, end)
            for i, x in enumerate((key_states, value_states))
        )
        return keys, values

    def tokens(self, which: int, first: int, end: int) -> torch.Tensor:
        """Keys (which = 0) or values (1) of these tokens in their order, dequantised: a copy."""
        assert self.cache is not None
        x = (self.cache.keys, self.cache.values)[which]
        slots = torch.arange(first, end) % self.cache.capacity
        if isinstance(x, Quantized):
            return as_tensor(x.data)[:, :, slots] * as_tensor(x.scale)[:, :, slots, None]
        return as_tensor(x)[:, :, slots]

    @property
    def keys(self) -> torch.Tensor | None:
        """The keys that the next token may see besides its own, (batch, kv_heads, tokens, head_dim)."""
        return self._kept(0)

    @property
    def values(self) -> torch.Tensor | None:
        """The values that the next token may see besides its own, (batch, kv_heads, tokens, v_head_dim)."""
        return self._kept(1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys `update` returns for so many new tokens, and the position of the first of them."""
        first = 0 if self.sliding_window is None else max(self.length - self.sliding_window + 1, 0)
        return self.length + query_length - first, first

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1 if self.sliding_window is None else self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last -tokens_to_remove tokens; a positive number, as older versions give, is what to keep."""
        kept = min(self.length, max(tokens_to_remove + (self.length if tokens_to_remove <= 0 else 0), 0))
        if self.cache is not None and kept < self.length:
            self.cache.truncate(kept)
            self.length = kept

    def activate_past_recording(self) -> None:
        """Make room in a ring for tokens that may be taken back."""
        self.record_past = True
        if self.cache is not None and self.sliding_window is not None:
            self.cache.grow(max(self.cache.capacity, self.sliding_window + _SPARE_WHILE_RECORDING))

    def reset(self) -> None:
        if self.cache is not None:
            self.cache.reset()
        self.length = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences, in this order."""
        if self.cache is not None:
            self.cache.select(torch.arange(self.batch_size)[indices.to("cpu")].numpy())
            self.batch_size = len(self.cache.lengths)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence so many times."""
        if self.cache is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def offload(self) -> None:
        """Nothing: the cache is in the CPU's memory."""

    def prefetch(self) -> None:
        """Nothing: the cache is in the CPU's memory."""

    def _append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        assert self.cache is not None
        self.cache.append(as_viewed(key_states), as_viewed(value_states))
        self.length += key_states.shape[2]

    def _keeps(self, dtype: torch.dtype) -> bool:
        return self.cache is not None and self._stored in (None, named_dtype(dtype))

    def _as_stored(self, x: torch.Tensor) -> torch.Tensor:
        """New tokens after the rounding that the cache gives them."""
        if self._stored == "int8":
            stored = quantize(as_viewed(x))
            return (as_tensor(stored.data) * as_tensor(stored.scale)[..., None]).to(x.dtype)
        return x if self._stored is None else x.to(getattr(torch, self._stored)).to(x.dtype)

    def _kept(self, which: int) -> torch.Tensor | None:
        if self.cache is None:
            return None
        if self.sliding_window is None and self._keeps(self.dtype):
            return as_tensor((self.cache.keys, self.cache.values)[which])  # type: ignore[arg-type]
        return self.tokens(which, self.get_mask_sizes(0)[1], self.length).to(self.dtype)
