"""How many threads a call uses, and what this build is."""

from __future__ import annotations

import os
from typing import TypedDict

from gqa import _core
from gqa.shapes import check_int


class Info(TypedDict):
    """What a build is."""

    version: str
    isa: str
    isas: list[str]
    threads: int
    openmp: bool


def set_num_threads(n: int | None) -> None:
    """Set how many threads calls use unless they say otherwise.

    Parameters
    ----------
    n : int or None
        At least 1. None goes back to the default: what the process may use, which is the least of the OpenMP limit
        (``OMP_NUM_THREADS``, ``threadpoolctl``), the CPUs it may run on and the CPU quotas of its cgroups. Changes of
        affinity are followed; quotas are read once. The environment variable ``GQA_NUM_THREADS`` sets the number when
        gqa is imported.

    Examples
    --------
    >>> import gqa
    >>> gqa.set_num_threads(1)
    >>> gqa.get_num_threads()
    1
    >>> gqa.set_num_threads(None)
    """
    _core.set_threads(0 if n is None else min(check_int("n", n, 1), 1024))


def get_num_threads() -> int:
    """The number of threads that a call uses unless it says otherwise.

    Examples
    --------
    >>> import gqa
    >>> gqa.get_num_threads() >= 1
    True
    """
    return _core.default_threads()


def info() -> Info:
    """What this build is: version, instruction sets, threads, OpenMP.

    Returns
    -------
    dict
        ``version`` (str), ``isa`` (the instruction set in use), ``isas`` (those this machine can use, best first),
        ``threads`` (int) and ``openmp`` (bool: whether OpenMP's limits, those of threadpoolctl among them, are known;
        without it calls use one thread unless told otherwise).

    Examples
    --------
    >>> import gqa
    >>> gqa.info()["isa"] in gqa.info()["isas"]
    True
    """
    return {
        "version": _core.__version__,
        "isa": _core.isa(),
        "isas": _core.available_isas(),
        "threads": get_num_threads(),
        "openmp": _core.has_openmp(),
    }


def read_environment() -> None:
    """Apply GQA_ISA and GQA_NUM_THREADS; ValueError if they cannot be honoured."""
    if isa := os.environ.get("GQA_ISA"):
        _core.use_isa(isa)
    if threads := os.environ.get("GQA_NUM_THREADS"):
        if not threads.isdecimal() or int(threads) < 1:
            raise ValueError(f"GQA_NUM_THREADS is {threads!r}, expected an integer of at least 1")
        set_num_threads(int(threads))
