"""zigzag: the positions of each rank's tokens, so that a causal mask leaves each as much to do."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqa.distributed.agreement import Exchange, agreed, check_communicator
from gqa.sequences import Table
from gqa.shapes import check_int

BLOCK = 512  # tokens that lie together, about: enough rows for one task


def zigzag(length: int, comm: Any) -> Table:
    """The positions of this rank's tokens among `length`, balanced under a causal mask all along the sequence.

    Blocks of about 512 tokens are dealt to ranks 0, 1, ..., n - 1, n - 1, ..., 1, 0, 0, 1, ..., so that each has an
    early one for every late one; of shorter sequences, two smaller blocks to each.

    Parameters
    ----------
    length : int
        Tokens of the sequence.
    comm : Comm
        As for :func:`gqa.distributed.attention`.

    Returns
    -------
    ndarray of int64, shape (n,)
        Ascending; every position from 0 to length - 1 is on one rank.

    Raises
    ------
    TypeError, ValueError
        If length is no whole number of at least 0, or differs between ranks.

    Examples
    --------
    >>> import gqa.distributed
    >>> from mpi4py import MPI
    >>> gqa.distributed.zigzag(6, MPI.COMM_SELF)
    array([0, 1, 2, 3, 4, 5])
    """
    comm = check_communicator(comm)
    tokens = agreed(Exchange(comm), "zigzag", {"length": length}, lambda: check_int("length", length, 0))
    ranks, rank = comm.Get_size(), comm.Get_rank()
    rounds = 2 * max(1, round(tokens / (2 * ranks * BLOCK)))
    blocks = rounds * ranks
    own = [i * ranks + (rank if i % 2 == 0 else ranks - 1 - rank) for i in range(rounds)]
    return np.concatenate([np.arange(i * tokens // blocks, (i + 1) * tokens // blocks) for i in own])
