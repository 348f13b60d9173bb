"""Pages: a pool of storage in pages of a fixed size, which the sequences that have them may share."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gqa.arguments import as_array, contiguous_channels, dtype_name, sharing_memory
from gqa.caches.storage import copy_tokens, zeros
from gqa.quantization import Quantized
from gqa.sequences import Store, Tensor, arrays
from gqa.shapes import Shape, check_shape


@dataclass
class PagedSequence:
    """Token p is in slot p % page_size of pages[p // page_size]."""

    pages: array[int] = field(default_factory=lambda: array("q"))
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
        shapes = [(num_pages, kv_heads, page_size, head_dim) for head_dim in head_dims]
        if storage is None:
            self.keys, self.values = (zeros("num_pages", num_pages, shape, dtype) for shape in shapes)
        elif isinstance(storage, (tuple, list)) and len(storage) == 2:
            self.keys, self.values = (
                _checked(f"storage of {name}", x, shape, dtype)
                for name, x, shape in zip(("keys", "values"), storage, shapes)
            )
        else:
            raise TypeError(f"storage is a {type(storage).__name__}, expected two arrays: (keys, values)")
        self.page_size = page_size
        for x, y in zip(arrays(self.keys), arrays(self.values)):
            if sharing_memory(x, (y,)):
                raise ValueError("storage has keys and values that overlap in memory")
        self.store = self._views()
        self.free = list(range(num_pages))[::-1]
        self._owners = [0] * num_pages

    def _views(self) -> Store:
        return _tokens_first(self.keys), _tokens_first(self.values)

    @property
    def native(self) -> tuple[Tensor, Tensor, int, Callable[..., None]]:
        """What the core is given of it.

        It asks for pages once nothing else can be refused. A signal at any point leaves every sequence with tokens that
        are all there: pages come first, then data, then lengths. A page may be lost.
        """
        return (*self.store, self.page_size, self.reserve)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: views would become arrays of their own."""
        return {name: x for name, x in vars(self).items() if name != "store"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.store = self._views()

    def pages(self, tokens: int) -> int:
        """How many pages so many tokens fill, the last perhaps in part."""
        return -(-tokens // self.page_size)

    def used(self, sequence: PagedSequence) -> array[int]:
        """The pages that hold tokens; others may be there for the next."""
        return sequence.pages[: self.pages(sequence.length)]

    def share(self, sequence: PagedSequence) -> PagedSequence:
        """Another sequence in the same pages."""
        pages = self.used(sequence)
        for page in pages:
            self._owners[page] += 1
        return PagedSequence(pages, sequence.length)

    def truncate(self, sequence: PagedSequence, length: int) -> None:
        """Drop the tokens from `length` on, and give up their pages."""
        kept = self.pages(length)
        dropped = sequence.pages[kept:]
        sequence.length = length
        del sequence.pages[kept:]
        for page in dropped:
            self._release(page)

    def needed(self, sequences: list[PagedSequence], counts: list[int]) -> int:
        """How many free pages it takes to append so many tokens."""
        pages = 0
        writers: Counter[int] = Counter()  # of pages that are filled in part: the last of their owners needs no copy
        for sequence, count in zip(sequences, counts):
            pages += max(self.pages(sequence.length + count) - len(sequence.pages), 0)
            if count > 0 and sequence.length % self.page_size:
                last = sequence.pages[sequence.length // self.page_size]
                writers[last] += 1
                pages += self._owners[last] > writers[last]
        return pages

    def reserve(self, sequences: list[PagedSequence], counts: list[int]) -> None:
        """Give sequences pages of their own for so many more tokens; ValueError, and none taken, if few are free."""
        needed = self.needed(sequences, counts)
        if needed > len(self.free):
            raise ValueError(f"{sum(counts)} more tokens need {needed} pages, but only {len(self.free)} are free")
        for sequence, count in zip(sequences, counts):
            if count > 0 and sequence.length % self.page_size:
                self._copy_on_write(sequence)
            missing = self.pages(sequence.length + count) - len(sequence.pages)
            if missing > 0:
                sequence.pages.extend(self._take(missing))

    def _copy_on_write(self, sequence: PagedSequence) -> None:
        """Give the sequence a page of its own for its next token."""
        index, filled = divmod(sequence.length, self.page_size)
        shared = sequence.pages[index]
        if self._owners[shared] > 1:
            (page,) = self._take(1)
            copy_tokens(self.store, self.store, [(page, 0, shared, 0, filled)], "bshd")
            sequence.pages[index] = page
            self._release(shared)

    def _take(self, count: int) -> list[int]:
        pages = self.free[: -count - 1 : -1]
        del self.free[-count:]
        for page in pages:
            self._owners[page] = 1
        return pages

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if self._owners[page] == 0:
            self.free.append(page)


def _checked(name: str, given: Any, shape: Shape, dtype: str) -> Tensor:
    """The caller's array as storage of that shape and dtype."""
    array = np.asarray(as_array(name, given))  # of a np.memmap, a plain view
    if dtype_name(name, array) != dtype:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}")
    check_shape(name, array.shape, shape)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if contiguous_channels(array) is not array:
        raise ValueError(f"{name} has strides {array.strides}, expected a contiguous last axis")
    return Quantized(array, np.zeros(shape[:-1], np.float32)) if dtype == "int8" else array


def _tokens_first(x: Tensor) -> Tensor:
    """(num_pages, page_size, kv_heads, ...)"""
    return Quantized(x.data.swapaxes(1, 2), x.scale.swapaxes(1, 2)) if isinstance(x, Quantized) else x.swapaxes(1, 2)
