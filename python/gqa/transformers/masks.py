"""The mask interface: the masks that transformers asks for, as arguments of attention in place of S x T arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import masking_utils

from gqa.torch.modes import is_traced
from gqa.transformers.deferred import Deferred

MaskFunction = Callable[..., Any]


@dataclass(frozen=True)
class Pattern:
    """Which keys a query sees, by their positions alone."""

    causal: bool = False
    window: tuple[int | None, int | None] | None = None


class DescribedMask(Deferred):
    """A mask (batch, 1, queries, keys) of bools: a pattern of positions, and which keys are padding.

    Attributes
    ----------
    pattern : Pattern
    query_position, key_position : int
        Positions of the first query and of the first key in their sequences.
    attended : tensor of bool, shape (batch, tokens), or None
        False where a token of a sequence, counted from its beginning, is padding.
    """

    pattern: Pattern
    query_position: int
    key_position: int
    attended: torch.Tensor | None
    _whole: Callable[[], torch.Tensor]

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        pattern: Pattern,
        positions: tuple[int, int],
        attended: torch.Tensor | None,
        whole: Callable[[], torch.Tensor],
    ) -> None:
        self.pattern, self.attended, self._whole = pattern, attended, whole
        self.query_position, self.key_position = positions

    def compute(self) -> torch.Tensor:
        return self._whole()

    def padding(self, first: int) -> torch.Tensor | None:
        """The mask (batch, 1, 1, keys) of padding over the keys from position `first` on; None where none is hidden."""
        if self.attended is None:
            return None
        stop = self.key_position + self.shape[-1]
        hidden = stop - self.attended.shape[1]  # tokens that a static cache has room for, and nobody has given yet
        padding = self.attended[:, first:stop]
        if hidden > 0:
            padding = torch.nn.functional.pad(padding, (0, hidden))
        return padding[:, None, None]


def described_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    **options: Any,
) -> torch.Tensor | None:
    """What transformers calls for a mask, with the arguments of its own ``sdpa_mask``.

    Returns None where every query sees every key, a description where the positions of queries and keys and the padding
    say it all, and otherwise (images within text, chunks, packed sequences, graphs that are traced) the whole mask.
    """
    whole = partial(
        masking_utils.sdpa_mask, batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask,
        **options,
    )  # fmt: skip
    pattern = None if is_traced(q_offset, attention_mask) else pattern_of(mask_function)
    if pattern is None or torch.device(options.get("device", "cpu")).type != "cpu":
        return whole(allow_is_bidirectional_skip=allow_is_bidirectional_skip)
    query_position, key_position = int(q_offset), int(kv_offset)
    if attention_mask is not None:
        stop = key_position + kv_length
        if pattern.causal:  # keys past the last query are hidden anyway: a static cache has room for tokens to come
            stop = min(stop, query_position + q_length)
        if attention_mask.shape[1] >= stop and bool(attention_mask[:, key_position:stop].all()):
            attention_mask = None
    if allow_is_bidirectional_skip and pattern == Pattern() and attention_mask is None:
        return None
    whole.keywords["allow_is_causal_skip"] = False
    shape, positions = (batch_size, 1, q_length, kv_length), (query_position, key_position)
    return DescribedMask(shape, torch.bool, pattern, positions, attention_mask, whole)


def pattern_of(function: MaskFunction) -> Pattern | None:
    """The pattern of a mask function of transformers, None if it is none that positions alone define."""
    if function is masking_utils.causal_mask_function:
        return Pattern(causal=True)
    if function is masking_utils.bidirectional_mask_function:
        return Pattern()
    if _made_by(masking_utils.sliding_window_overlay, function):
        return Pattern(window=(_captured(function)["sliding_window"] - 1, None))
    if _made_by(masking_utils.sliding_window_bidirectional_overlay, function):
        return Pattern(window=(_captured(function)["sliding_window"],) * 2)
    if not _made_by(masking_utils.and_masks, function):
        return None
    patterns = [pattern_of(part) for part in _captured(function)["mask_functions"]]
    known = [pattern for pattern in patterns if pattern is not None]
    windows = [pattern.window for pattern in known if pattern.window is not None]
    if len(known) < len(patterns) or len(windows) > 1:
        return None
    return Pattern(any(pattern.causal for pattern in known), windows[0] if windows else None)


def _made_by(maker: Callable[..., MaskFunction], function: MaskFunction) -> bool:
    """Whether a function is the one that `maker` defines within itself."""
    code = getattr(function, "__code__", None)
    return code is not None and code in maker.__code__.co_consts


def _captured(function: MaskFunction) -> dict[str, Any]:
    """What a function has taken from around it, by name."""
    cells = getattr(function, "__closure__", None) or ()
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in cells)))
