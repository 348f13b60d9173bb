"""Arrays in memory that ends, or begins, where the process may read no further: a stray access is a crash.

Pages before and after the data cannot be read; those of the data can only be read unless the array is for writing.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

import gqa

NONE, READ, READ_WRITE = 0, 1, 3
libc = ctypes.CDLL(None, use_errno=True)
pages = []  # kept alive


def guarded(x, at_end, writable=False):
    """A C-contiguous copy of x, its last (or first) byte next to a page that cannot be read."""
    data_bytes = -(-max(x.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, data_bytes + 2 * mmap.PAGESIZE)
    pages.append(memory)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = mmap.PAGESIZE + (data_bytes - x.nbytes if at_end else 0)
    y = np.frombuffer(memory, np.uint8, x.nbytes, offset).view(x.dtype).reshape(x.shape)
    y[...] = x
    _protect(begin, mmap.PAGESIZE, NONE)
    _protect(begin + mmap.PAGESIZE, data_bytes, READ_WRITE if writable else READ)
    _protect(begin + mmap.PAGESIZE + data_bytes, mmap.PAGESIZE, NONE)
    return y


def guard(arguments, at_end):
    """The arguments with all their arrays guarded."""

    def one(x):
        if isinstance(x, gqa.Quantized):
            return gqa.Quantized(guarded(x.data, at_end), guarded(x.scale, at_end))
        return guarded(x, at_end) if isinstance(x, np.ndarray) else x

    return {name: one(x) for name, x in arguments.items()}


def guarded_tail(x, axis, kept):
    """A copy of x of which only the first `kept` along `axis` can be read; they must end with a page."""
    memory = mmap.mmap(-1, x.nbytes)
    pages.append(memory)
    y = np.frombuffer(memory, np.uint8).view(x.dtype).reshape(x.shape)
    y[...] = x
    readable = x.nbytes // x.shape[axis] * kept
    assert x.size == np.prod(x.shape[axis:])
    assert readable % mmap.PAGESIZE == 0
    _protect(ctypes.addressof(ctypes.c_char.from_buffer(memory)) + readable, x.nbytes - readable, NONE)
    return y


def readable_pages(x, allowed):
    """A C-contiguous copy of x of which only the pages can be read that hold bytes of x.reshape(-1)[allowed]."""
    memory = mmap.mmap(-1, -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    pages.append(memory)
    y = np.frombuffer(memory, np.uint8, x.nbytes).view(x.dtype).reshape(x.shape)
    y[...] = x
    read = np.unique(np.flatnonzero(np.broadcast_to(allowed, x.shape)) * x.itemsize // mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in np.setdiff1d(np.arange(len(memory) // mmap.PAGESIZE), read):
        _protect(begin + int(page) * mmap.PAGESIZE, mmap.PAGESIZE, NONE)
    return y


def _protect(address, length, access):
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), access) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
