"""What this machine can do at most: multiply-adds and bytes read per second, measured by small C++ loops."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("limits.cpp")
AVX512 = ["-mavx512f", "-mfma"]
FLAGS = {"avx512vnni": AVX512, "avx512": AVX512, "avx2": ["-mavx2", "-mfma"], "baseline": []}
STREAMS = (1, 2, 4, 8)


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual names that exists."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Rates:
    """One measurement: floating-point operations per second, and bytes per second for each number of streams."""

    flops: float
    reads: dict[int, float]


class Limits:
    """Measures the limits of `threads` threads with the instruction set `isa`, on the CPUs of this process."""

    def __init__(self, isa: str, threads: int) -> None:
        command = compiler()
        if command is None:
            raise RuntimeError("no C++ compiler found: set CXX")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "limits.so"
            flags = ["-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", *FLAGS[isa]]
            subprocess.run([command, *flags, str(SOURCE), "-o", str(library)], check=True)
            self._library = ctypes.CDLL(str(library))
        self._library.multiply_add_rate.restype = self._library.read_rate.restype = ctypes.c_double
        self.isa, self.threads = isa, threads
        self._memory = aligned_ones(1 << 20)
        self.best = 0.0  # the highest rate of multiply-adds so far
        for _ in range(20):
            self.flops()

    def flops(self, operations: float = 4e8) -> float:
        """Float32 operations per second, two for each multiply-add, on registers alone."""
        rate: float = max(self._library.multiply_add_rate(self.threads, ctypes.c_double(operations)) for _ in range(2))
        self.best = max(self.best, rate)
        return rate

    def read(self, size: int, streams: int, least: int = 1 << 27) -> float:
        """Bytes per second when `size` bytes are read again and again, at least `least` bytes in all.

        A thread reads its share in `streams` places side by side: prefetchers follow a few streams better than one.
        """
        if self._memory.nbytes < size:
            self._memory = aligned_ones(size)
        repeats = -(-least // size)
        memory = ctypes.c_void_p(self._memory.ctypes.data)
        return float(self._library.read_rate(self.threads, memory, ctypes.c_size_t(size), repeats, streams))

    def measure(self, size: int) -> Rates:
        """All of it once, reading `size` bytes."""
        return Rates(self.flops(), {streams: self.read(size, streams) for streams in STREAMS})


def aligned_ones(size: int) -> np.ndarray:
    """`size` bytes of float32 ones from an address divisible by 64, in the kind of memory every NumPy array is in."""
    memory = np.ones(size // 4 + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + size // 4]
