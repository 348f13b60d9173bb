"""Pages: a pool of storage in pages of a fixed size, which the sequences that have them may share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gqa.arguments import as_array, contiguous_channels, dtype_name, shares_memory
from gqa.quantize import Quantized
from gqa.sequences import Store, Tensor, arrays, spans, zeros
from gqa.shapes import Shape, check_shape


@dataclass
class PagedSequence:
    """Token p is in slot p % page_size of pages[p // page_size]; no page is empty."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class PagePool:
    """The keys and values of all pages, and who has them.

    Attributes
    ----------
    keys, values : shape (num_pages, kv_heads, page_size, head_dim or v_head_dim)
    store : views of them with the second and third axes swapped, which is the layout "bshd"
    free : the pages that no sequence has
    """

    def __init__(
        self, num_pages: int, page_size: int, kv_heads: int, head_dims: tuple[int, int], dtype: str, storage: Any
    ) -> None:
        keys, values = _pair(storage)
        self.page_size = page_size
        self.keys = _tensor("keys", keys, (num_pages, kv_heads, page_size, head_dims[0]), dtype)
        self.values = _tensor("values", values, (num_pages, kv_heads, page_size, head_dims[1]), dtype)
        for x, y in zip(arrays(self.keys), arrays(self.values)):
            if shares_memory(x, y):
                raise ValueError("storage has keys and values that overlap in memory")
        self.store: Store = (_by_token(self.keys), _by_token(self.values))
        self.free = list(range(num_pages))[::-1]
        self._owners = [0] * num_pages

    def pages(self, tokens: int) -> int:
        """How many pages so many tokens fill, the last perhaps in part."""
        return -(-tokens // self.page_size)

    def share(self, sequence: PagedSequence) -> PagedSequence:
        """Another sequence in the same pages."""
        for page in sequence.pages:
            self._owners[page] += 1
        return PagedSequence(sequence.pages.copy(), sequence.length)

    def truncate(self, sequence: PagedSequence, length: int) -> None:
        """Drop the tokens from `length` on, and give up their pages."""
        kept = self.pages(length)
        for page in sequence.pages[kept:]:
            self._release(page)
        del sequence.pages[kept:]
        sequence.length = length

    def needed(self, sequences: list[PagedSequence], counts: list[int]) -> int:
        """How many free pages it takes to append so many tokens."""
        pages = 0
        writers: Counter[int] = Counter()  # of pages that are filled in part: the last of their owners needs no copy
        for sequence, count in zip(sequences, counts):
            pages += self.pages(sequence.length + count) - len(sequence.pages)
            if count > 0 and sequence.length % self.page_size:
                last = sequence.pages[-1]
                writers[last] += 1
                pages += self._owners[last] > writers[last]
        return pages

    def append(self, sequences: list[PagedSequence], new: Store, counts: list[int]) -> None:
        """Append the tokens of `new`, shape (1, tokens, ...), those of the first sequence first."""
        pairs, token = list(zip(arrays(*self.store), arrays(*new))), 0
        for sequence, count in zip(sequences, counts):
            if count > 0 and sequence.length % self.page_size:
                self._copy_on_write(sequence)
            before, sequence.length = sequence.length, sequence.length + count
            sequence.pages += [self._take() for _ in range(len(sequence.pages), self.pages(sequence.length))]
            for p, n in spans(before, sequence.length, self.page_size):
                page, slot = sequence.pages[p // self.page_size], p % self.page_size
                for to, x in pairs:
                    to[page, slot : slot + n] = x[0, token : token + n]
                token += n

    def _copy_on_write(self, sequence: PagedSequence) -> None:
        """Give the sequence a last page of its own."""
        shared = sequence.pages[-1]
        if self._owners[shared] > 1:
            sequence.pages[-1] = self._take()
            self._release(shared)
            for x in arrays(*self.store):
                x[sequence.pages[-1]] = x[shared]

    def _take(self) -> int:
        page = self.free.pop()
        self._owners[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if self._owners[page] == 0:
            self.free.append(page)


def _pair(storage: Any) -> tuple[Any, Any]:
    """The caller's keys and values, or None twice."""
    if storage is None:
        return None, None
    if not isinstance(storage, (tuple, list)) or len(storage) != 2:
        raise TypeError(f"storage is a {type(storage).__name__}, expected two arrays: (keys, values)")
    return storage[0], storage[1]


def _tensor(name: str, given: Any, shape: Shape, dtype: str) -> Tensor:
    """Storage of that shape: the caller's, checked, or new."""
    if given is None:
        return zeros(shape, dtype)
    name = f"storage of {name}"
    array = np.asarray(as_array(name, given))  # of a np.memmap, a plain view
    if dtype_name(name, array) != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}")
    check_shape(name, array.shape, shape)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if contiguous_channels(array) is not array:
        raise ValueError(f"{name} has strides {array.strides}, expected a contiguous last axis")
    return Quantized(array, np.zeros(shape[:-1], np.float32)) if dtype == "int8" else array


def _by_token(x: Tensor) -> Tensor:
    """(num_pages, page_size, kv_heads, ...)"""
    return Quantized(x.data.swapaxes(1, 2), x.scale.swapaxes(1, 2)) if isinstance(x, Quantized) else x.swapaxes(1, 2)
