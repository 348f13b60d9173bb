"""Ranks that are threads of one process: the few methods of mpi4py's Comm that gqa.distributed uses."""

from __future__ import annotations

import threading

import numpy as np


class Done:
    def Wait(self):
        return True


class ThreadComm:
    """One rank's communicator; all of them share `board`."""

    def __init__(self, board, rank):
        self.board, self.rank = board, rank

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return len(self.board.slots)

    def Is_inter(self):
        return False

    def Allgather(self, sendbuf, recvbuf):
        parts = self.exchange(sendbuf)
        assert {x.nbytes for x in parts} == {sendbuf.nbytes}
        recvbuf.reshape(-1)[...] = np.concatenate([x.reshape(-1) for x in parts])

    def Allgatherv(self, sendbuf, recvbuf):
        buffer, counts = recvbuf
        parts = self.exchange(sendbuf)
        assert [x.size for x in parts] == list(counts)
        assert buffer.size == sum(counts)
        assert all(x.dtype == buffer.dtype for x in parts)
        buffer.reshape(-1)[...] = np.concatenate([x.reshape(-1) for x in parts])

    def Alltoallv(self, sendbuf, recvbuf):
        buffer, counts = sendbuf
        assert buffer.size == sum(counts)
        received, expected = recvbuf
        parts = self.exchange_objects(np.split(buffer, np.cumsum(counts)[:-1]))
        mine = [x[self.rank] for x in parts]
        assert [x.size for x in mine] == list(expected)
        assert received.size == sum(expected)
        received[...] = np.concatenate(mine)

    def Iallgatherv(self, sendbuf, recvbuf):
        self.Allgatherv(sendbuf, recvbuf)
        return Done()

    def exchange(self, x):
        """What all ranks give, in their order."""
        assert x.flags.c_contiguous
        return [x.copy() for x in self.exchange_objects(x.copy())]

    def exchange_objects(self, x):
        self.board.slots[self.rank] = x
        self.board.barrier.wait()
        parts = list(self.board.slots)
        self.board.barrier.wait()
        return parts


class Board:
    def __init__(self, ranks):
        self.slots = [None] * ranks
        self.barrier = threading.Barrier(ranks)


def run_on_ranks(ranks, work):
    """What work(comm) returns, or the exception it raises, on each rank."""
    board, results = Board(ranks), [None] * ranks

    def run(rank):
        try:
            results[rank] = work(ThreadComm(board, rank))
        except threading.BrokenBarrierError as error:  # another rank has failed outside of gqa
            results[rank] = error
        except Exception as error:
            results[rank] = error
            if isinstance(error, AssertionError):
                board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
