"""Ranks agree before anything is written: on the arguments of a call, and that none of them has an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from gqa.arguments import Array, dtype_name
from gqa.quantization import Quantized
from gqa.sequences import arrays

Result = TypeVar("Result")


class Request(Protocol):
    """A pending operation."""

    def Wait(self) -> Any: ...


class Communicator(Protocol):
    """The methods of mpi4py's Comm that are used, all of them with NumPy arrays for buffers."""

    def Get_rank(self) -> int: ...
    def Get_size(self) -> int: ...
    def Is_inter(self) -> bool: ...
    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None: ...
    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None: ...
    def Iallgatherv(self, sendbuf: Any, recvbuf: Any) -> Request: ...


_METHODS = ("Get_rank", "Get_size", "Is_inter", "Allgather", "Allgatherv", "Iallgatherv")
_ERRORS = {kind.__name__: kind for kind in (TypeError, ValueError, MemoryError, ModuleNotFoundError, OverflowError)}


def check_communicator(comm: Any) -> Communicator:
    """`comm` itself; raises, on every rank, unless it is an intracommunicator."""
    missing = [name for name in _METHODS if not callable(getattr(comm, name, None))]
    if missing:
        raise TypeError(
            f"comm is a {type(comm).__name__}, expected an intracommunicator of mpi4py, or an object with its methods "
            f"{', '.join(_METHODS)}; {missing[0]} is missing"
        )
    if comm.Is_inter():
        raise ValueError("comm is an intercommunicator, expected an intracommunicator")
    checked: Communicator = comm
    return checked


def described(x: Any, whole: bool = True) -> Any:
    """What tells an argument from others: the kind and shape of a tensor, anything else as it is.

    whole: none of it is padding, so that its contents, too, must be the same: the sum of their bits.
    """
    if isinstance(x, Quantized):
        return ("quantised", *(described(part, whole) for part in arrays(x)))
    if not isinstance(x, np.ndarray):
        return x
    return dtype_name("the array", x), x.shape, _sum_of_bits(x) if whole else None


def described_program(program: tuple[Any, tuple[Any, ...]] | None) -> Any:
    """What tells score programs from others: whether there is one, and the arrays that it reads."""
    return None if program is None else tuple(described(np.asarray(x)) for x in program[1])


def _sum_of_bits(x: Array) -> int:
    if not x.flags.c_contiguous:
        x = np.ascontiguousarray(x)
    octets = x.reshape(-1).view(np.uint8)
    if not (rest := x.nbytes % 8):
        return int(np.add.reduce(octets.view(np.uint64)))
    return int(np.add.reduce(octets[:-rest].view(np.uint64))) + int(octets[-rest:].sum())


def agreed(comm: Communicator, function: str, arguments: dict[str, Any], work: Callable[[], Result]) -> Result:
    """What `work` returns, once all ranks have done theirs without an error and with the same arguments.

    `work` writes nothing that others see; it may add to `arguments`.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    agree(comm, function, arguments, error)
    return cast("Result", result)


def agree(comm: Communicator, function: str, arguments: dict[str, Any], error: Exception | None) -> None:
    """Return if all ranks call `function` with the same arguments and no error; raise the same error on all if not.

    arguments: by name, as `described`; what they are does not matter if there is an error.
    """
    text = repr((function, arguments))
    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
    mine = np.array((error is not None, digest), np.int64)
    everyone = np.empty((comm.Get_size(), 2), np.int64)
    comm.Allgather(mine, everyone)
    first = everyone[0]
    if not everyone[:, 0].any() and (everyone == first).all():
        return
    if everyone[:, 0].any():
        _raise_error(_exchange_texts(comm, _text_of(error)), error)
    _raise_difference(_exchange_texts(comm, json.dumps([function, {name: repr(x) for name, x in arguments.items()}])))


def _text_of(error: Exception | None) -> str:
    return "" if error is None else json.dumps([type(error).__name__, str(error)])


def _raise_error(texts: Sequence[str], own: Exception | None) -> None:
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
    name, message = json.loads(text)
    if any(other != text for other in texts):
        message += f" (on rank {rank} of {len(texts)})"
    if name not in _ERRORS:
        message = f"{name}: {message}"
    raise _ERRORS.get(name, RuntimeError)(message) from own


def _raise_difference(texts: Sequence[str]) -> None:
    calls = [json.loads(text) for text in texts]
    function, arguments = calls[0]
    for rank, (other_function, others) in enumerate(calls):
        if other_function != function:
            raise RuntimeError(f"rank {rank} calls {other_function} while rank 0 calls {function}")
        for name, x in arguments.items():
            if others.get(name) != x:
                raise ValueError(f"{name} differs between ranks: {x} on rank 0, {others.get(name)} on rank {rank}")
    raise RuntimeError(f"{function} has other arguments on other ranks")


def _exchange_texts(comm: Communicator, text: str) -> list[str]:
    """The texts of all ranks."""
    own = np.frombuffer(text.encode(), np.uint8)
    counts = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([own.size], np.int64), counts)
    joined = np.empty(counts.sum(), np.uint8)
    comm.Allgatherv(own, [joined, counts.tolist()])
    ends = np.cumsum(counts)
    return [joined[end - count : end].tobytes().decode() for count, end in zip(counts, ends)]
