"""Attention over the memory and the processors of several machines, to the last bit that of one.

A :class:`ShardedKVCache` deals the tokens of each sequence out to the ranks of a communicator; :func:`attention`, and
:func:`attention_vjp` for its gradients, are for prompts of which each rank has some tokens. The communicator is one of
mpi4py (``pip install 'gqa[mpi]'``), or any object with these methods of it: ``Get_rank``, ``Get_size``, ``Is_inter``,
and ``Allgather``, ``Allgatherv`` and ``Iallgatherv`` of NumPy arrays, the last of which returns a request with
``Wait``; for gradients ``Alltoallv``, too. mpi4py itself is not imported.

All functions are collective: every rank calls them, in the same order, and so are constructors. An error on one rank is
raised on all of them, and nothing has been written then on any. What is not caught here is an error of the program
itself between calls: run it by ``mpiexec -n 2 python -m mpi4py program.py``, which ends the job when one rank fails.
"""

from gqa.distributed.context_parallel import attention
from gqa.distributed.gradients import attention_vjp
from gqa.distributed.sharded_cache import ShardedKVCache
from gqa.distributed.zigzag_deal import zigzag

__all__ = ["ShardedKVCache", "attention", "attention_vjp", "zigzag"]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
