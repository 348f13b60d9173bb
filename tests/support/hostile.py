"""Calls by somebody who means ill: what is changed in a good call, and what must come of it.

Each row is (name, change, outcome). `change` takes the good arguments and returns those to replace. The outcome is a
pattern that the error must match, or SAME: the bits of the call
with plain arguments, those that `plain` names where they are other ones than the good call's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dlpack_producer import Producer

SAME = "the same bits"
B, HQ, HKV, S, T, D = 2, 4, 2, 3, 20, 8
ARRAYS = ("q", "k", "v", "mask", "sinks", "out")


class Row(NamedTuple):
    name: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    outcome: str | None  # None: an error of somebody else's, such as NumPy's or Python's own
    error: type[Exception] | tuple[type[Exception], ...] | None = None
    plain: Mapping[str, Any] = MappingProxyType({})


def good() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {
            "q": (B, HQ, S, D), "k": (B, HKV, T, D), "v": (B, HKV, T, D), "mask": (S, T), "sinks": (HQ,),
        }.items()
    }  # fmt: skip
    return arrays | {"out": np.zeros((B, HQ, S, D), np.float32)}


class Lying(np.ndarray):
    """Says anything of itself."""

    shape = property(lambda self: (1, 1, 10**9, 10**9))  # type: ignore[assignment]
    strides = property(lambda self: (2**62,) * 4)  # type: ignore[assignment]
    ndim = property(lambda self: 40)  # type: ignore[assignment]
    size = property(lambda self: -1)  # type: ignore[assignment]
    dtype = property(lambda self: "nothing")  # type: ignore[assignment]

    def __len__(self):
        return 2**40

    def __array__(self, *_, **__):
        raise RuntimeError("not to be asked")

    def __array_finalize__(self, other): ...


class Sequence:
    """A sequence whose length and items do not go together."""

    def __init__(self, length, items):
        self.length, self.items = length, items

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.items[i]


class Number:
    """A number whose conversion gives or does something else."""

    def __init__(self, result):
        self.result = result

    def __index__(self):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    __float__ = __index__


def unaligned(x):
    y = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def read_only(x):
    y = x.copy()
    y.flags.writeable = False
    return y


def gaps(x):
    """Every second element of a larger array, on every axis."""
    y = np.full(tuple(2 * n + 1 for n in x.shape), np.nan, x.dtype)[tuple(slice(1, None, 2) for _ in x.shape)]
    y[...] = x
    return y


def backwards(x):
    flip = (slice(None, None, -1),) * x.ndim
    return x[flip].copy()[flip]


# What reads to the same numbers, whatever it looks like.
SAME_NUMBERS = {
    "read-only": read_only,
    "backwards": backwards,
    "with gaps": gaps,
    "Fortran order": np.asfortranarray,
    "unaligned": unaligned,
    "a lying subclass": lambda x: x.view(Lying),
    "a matrix-like subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
    "a memory map's view": lambda x: np.frombuffer(bytearray(x.tobytes()), x.dtype).reshape(x.shape),
    "a producer of DLPack": Producer,
    "an old producer of DLPack": lambda x: Producer(x, versioned=False),
}
# Arrays of a wrong kind: TypeError.
WRONG_KINDS = {
    "foreign byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "complex": lambda x: x.astype(complex),
    "int32": lambda x: x.astype(np.int32),
    "uint8": lambda x: x.astype(np.uint8),
    "long double": lambda x: x.astype(np.longdouble),
    "object": lambda x: x.astype(object),
    "text": lambda x: x.astype("U8"),
    "a structure": lambda x: x.view([("x", np.float32)]),
    "a time": lambda x: x.astype("m8[s]"),
    "a masked array": np.ma.masked_array,
    "a list": lambda x: x.tolist(),
    "bytes": lambda x: x.tobytes(),
    "a memoryview": memoryview,
    "a number": lambda x: 1.0,
    "a class": lambda x: np.ndarray,
    "complex by DLPack": lambda x: Producer(x.astype(np.complex64)),
    "float8 by DLPack": lambda x: Producer(x, code=10, bits=8),
    "two lanes by DLPack": lambda x: Producer(x, lanes=2),
}
# Arrays of a wrong shape, or out of reach: ValueError.
WRONG_SHAPES = {
    "on another device": lambda x: Producer(x, device=(2, 0)),
    "without axes": lambda x: x.reshape(-1)[:1].reshape(()),
    "32 axes": lambda x: x.reshape((1,) * (32 - x.ndim) + x.shape),
    "an axis of 0": lambda x: x[..., :0],
    "another axis of 3": lambda x: np.stack([x] * 3),
    "2**40 in front": lambda x: np.broadcast_to(x, (2**40, *x.shape)),
    "2**40 at the end": lambda x: np.broadcast_to(x[..., :1], (*x.shape[:-1], 2**40)),
    "a size of 2**62 by DLPack": lambda x: Producer(x, shape=sizes(2**62, *x.shape[1:])),
}


def sizes(*numbers):
    return (ctypes.c_int64 * len(numbers))(*numbers)


def arrays() -> Iterator[Row]:
    for name in ARRAYS:
        inputs = {} if name == "out" else SAME_NUMBERS
        for what, make in inputs.items():
            yield Row(f"{name} {what}", lambda a, n=name, m=make: {n: m(a[n])}, SAME)
        for what, make in WRONG_KINDS.items():
            if name == "mask" and what == "a number":
                continue
            yield Row(f"{name} {what}", lambda a, n=name, m=make: {n: m(a[n])}, name, TypeError)
        for what, make in WRONG_SHAPES.items():
            if (name, what) == ("mask", "without axes"):  # one value for all
                continue
            yield Row(f"{name} {what}", lambda a, n=name, m=make: {n: m(a[n])}, r"\b[kvq]\b|out|" + name, ValueError)
    yield Row("out read-only", lambda a: {"out": read_only(a["out"])}, "out", ValueError)
    yield Row("out of stride 0", lambda a: {"out": as_strided(a["out"], strides=(0, 0, 0, 4))}, "out", ValueError)
    for stride in (0, 1, 3, 4, 2**40):
        yield Row(
            f"out of channel stride {stride}",
            lambda a, s=stride: {"out": as_strided(a["out"].ravel(), (B, HQ, S, D), (HQ * S * s, S * s, s, s))},
            "out", ValueError,
        )  # fmt: skip
    yield Row("out is q", lambda a: {"out": a["q"]}, "out .*q", ValueError)
    for name in ("k", "v"):
        yield Row(
            f"out within {name}",
            lambda a, n=name: {"out": as_strided(a[n], (B, HQ, S, D), (HQ * S * D * 4, S * D * 4, D * 4, 4))},
            f"out .*{name}", ValueError,
        )  # fmt: skip
    for name in ("k", "v", "mask"):
        yield Row(
            f"{name} of overlapping rows",
            lambda a, n=name: {n: as_strided(a[n], strides=(*a[n].strides[:-2], 4, 4))},
            SAME,
        )


def tokens() -> Iterator[Row]:
    """Keys of which there are as many as one likes, but of which few are read."""
    for count in (2**31 + 1, 2**40, 2**55):
        yield Row(
            f"{count} keys of which 20 count",
            lambda a, n=count: {
                "k": as_strided(a["k"], (B, HKV, n, D), a["k"].strides),
                "v": as_strided(a["v"], (B, HKV, n, D), a["v"].strides),
                "mask": None, "kv_lengths": [T, T],
            },
            SAME, plain={"mask": None},
        )  # fmt: skip
    for count in (2**40, 2**55):
        yield Row(
            f"{count} keys", lambda a, n=count: {x: as_strided(a[x], (B, HKV, n, 8), (0, 0, 0, 4)) for x in "kv"},
            r"\bk\b|mask", ValueError,
        )  # fmt: skip
    yield Row(
        "2**50 queries",
        lambda a: {"q": np.broadcast_to(a["q"][:, :, :1], (B, HQ, 2**50, D)), "out": None, "mask": None},
        None, MemoryError,
    )  # fmt: skip
    yield Row(
        "more sinks than an address space holds",
        lambda a: {x: np.broadcast_to(np.float16(0), shape) for x, shape in {
            "q": (1, 2**60 + 8, 1, 1), "k": (1, 1, 1, 1), "v": (1, 1, 1, 1), "sinks": (2**60 + 8,)}.items()
        } | {"out": None, "mask": None},
        None, MemoryError,
    )  # fmt: skip


WRONG = (TypeError, ValueError)  # of a list: NumPy makes an array of floats or objects of what no integer type holds
LARGE = (2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)


def numbers() -> Iterator[Row]:
    for n in LARGE:
        yield Row(f"window of {n}", lambda a, n=n: {"window": (n, n)}, SAME)
        yield Row(f"query_offset {n}", lambda a, n=n: {"query_offset": n, "causal": True}, SAME)
        yield Row(f"query_offset -{n}", lambda a, n=n: {"query_offset": -n}, SAME)
        yield Row(f"num_threads {n}", lambda a, n=n: {"num_threads": n}, SAME)
        yield Row(f"window of -{n}", lambda a, n=n: {"window": (-n, 0)}, "window", ValueError)
        yield Row(f"num_threads -{n}", lambda a, n=n: {"num_threads": -n}, "num_threads", ValueError)
        yield Row(f"a length of {n}", lambda a, n=n: {"kv_lengths": [n, 1]}, "kv_lengths", WRONG)
        yield Row(f"a length of -{n}", lambda a, n=n: {"kv_lengths": [1, -n]}, "kv_lengths", WRONG)
    wrong = {
        "text": "1", "bytes": b"1", "a list": [1.5], "a complex": 1j, "an object": object(), "a class": int,
        "that raises": Number(TypeError("num_threads window scale softcap query_offset kv_lengths")),
        "that is no number": Number("many"),
    }  # fmt: skip
    for what, x in wrong.items():
        own = what != "that is no number"  # Python itself refuses that one
        for name in ("num_threads", "scale", "softcap", "query_offset"):
            yield Row(f"{name} {what}", lambda a, n=name, x=x: {n: x}, name if own else None, TypeError)
        yield Row(f"window {what}", lambda a, x=x: {"window": (x, 0)}, "window" if own else None, TypeError)
    for x in (np.nan, np.inf, -np.inf, 1e31, Number(float("nan"))):
        yield Row(
            f"scale {x if isinstance(x, float) else 'that turns NaN'}", lambda a, x=x: {"scale": x}, "scale", ValueError
        )
    for x in (np.nan, np.inf, -1.0, -1e-300):
        yield Row(f"softcap {x}", lambda a, x=x: {"softcap": x}, "softcap", ValueError)
    lists = {
        "longer than it says": Sequence(2, [1, 2, 3]),
        "shorter than it says": Sequence(2, [1]),
        "of negative length": Sequence(-1, [1, 2]),
        "of 2**62": Sequence(2**62, [1, 2]),
        "of floats": [1.0, 2.0],
        "of text": ["1", "2"],
        "nested": [[1, 2]],
        "a generator": (n for n in (1, 2)),
    }
    for what, x in lists.items():
        yield Row(f"kv_lengths {what}", lambda a, x=x: {"kv_lengths": x}, None, (*WRONG, MemoryError))
    yield Row("layout of another kind", lambda a: {"layout": 3}, "layout", TypeError)
    yield Row("layout unknown", lambda a: {"layout": "b" * 10**6}, "layout", ValueError)


ROWS = [*arrays(), *tokens(), *numbers()]
