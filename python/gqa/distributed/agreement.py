"""Ranks agree before anything is written: on the arguments of a call, and that none of them has an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from gqa import _core
from gqa.arguments import dtype_name
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
    def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> None: ...


_METHODS = ("Get_rank", "Get_size", "Is_inter", "Allgather", "Allgatherv", "Iallgatherv")
_ERRORS = {kind.__name__: kind for kind in (TypeError, ValueError, MemoryError, ModuleNotFoundError, OverflowError)}


def check_communicator(comm: Any, *more: str) -> Communicator:
    """`comm` itself; raises, on every rank, unless it is an intracommunicator. more: methods needed besides."""
    methods = (*_METHODS, *more)
    missing = [name for name in methods if not callable(getattr(comm, name, None))]
    if missing:
        raise TypeError(
            f"comm is a {type(comm).__name__}, expected an intracommunicator of mpi4py, or an object with its methods "
            f"{', '.join(methods)}; {missing[0]} is missing"
        )
    if comm.Is_inter():
        raise ValueError("comm is an intercommunicator, expected an intracommunicator")
    checked: Communicator = comm
    return checked


def described(x: Any, whole: bool = True) -> Any:
    """What tells an argument from others: the kind and shape of a tensor, anything else as it is.

    whole: none of it is padding, so that its contents, too, must be the same: a digest of them.
    """
    if isinstance(x, Quantized):
        return ("quantised", *(described(part, whole) for part in arrays(x)))
    if not isinstance(x, np.ndarray):
        return x
    return dtype_name("the array", x), x.shape, _core.digest(x) if whole else None


def described_program(program: tuple[Any, tuple[Any, ...]] | None) -> Any:
    """What tells score programs from others: whether there is one, and the arrays that it reads."""
    return None if program is None else tuple(described(np.asarray(x)) for x in program[1])


class Exchange:
    """The messages by which the ranks of a communicator begin a call, all of one size.

    Each has a header, whether its rank has an error and a digest of the call's arguments, and room for what the call
    exchanges if there is no error: so one collective operation serves for both. All calls of a cache have messages of
    one size, so that those of different calls, too, are compared.

    Attributes
    ----------
    message, messages : bytes of this rank, and of all ranks
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm, self.ranks = comm, comm.Get_size()
        self.make_room(0)

    def make_room(self, room: int) -> None:
        """Let messages have `room` bytes besides their headers; the same on all ranks."""
        self.room = room
        self.message = np.zeros(_core.HEADER_BYTES + room, np.uint8)
        self.messages = np.empty(self.ranks * self.message.size, np.uint8)
        self._header = self.message[:16].view(np.int64)

    def agree(self, function: str, error: Exception | None, arguments: Callable[[], dict[str, Any]]) -> None:
        """Exchange messages; return if the headers are those of the same call without an error, or else raise the same
        error on all ranks.

        arguments: what the digest is of, by name, as `described`; called only where ranks differ.
        """
        if error is not None:
            self._header[0] = 1
        self.comm.Allgather(self.message, self.messages)
        if _core.messages_agree(self.messages, self.ranks):
            return
        self._header[0] = 0
        if self.messages.reshape(self.ranks, -1)[:, :8].any():
            _raise_error(_exchange_texts(self.comm, _text_of(error)), error)
        text = json.dumps([function, {name: repr(x) for name, x in arguments().items()}])
        _raise_difference(_exchange_texts(self.comm, text))

    def write_digest(self, function: str, arguments: dict[str, Any]) -> None:
        """Make the header that of a call of `function`."""
        text = repr((function, arguments))
        self._header[:] = (
            0,
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True),
        )


def agreed(exchange: Exchange, function: str, arguments: dict[str, Any], work: Callable[[], Result]) -> Result:
    """What `work` returns, once all ranks have done theirs without an error and with the same arguments.

    `work` writes nothing that others see; it may add to `arguments`.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    agree(exchange, function, arguments, error)
    return cast("Result", result)


def agree(exchange: Exchange, function: str, arguments: dict[str, Any], error: Exception | None) -> None:
    """Return if all ranks call `function` with the same arguments and no error; raise the same error on all if not.

    arguments: by name, as `described`; what they are does not matter if there is an error.
    """
    exchange.write_digest(function, arguments)
    exchange.agree(function, error, lambda: arguments)


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
