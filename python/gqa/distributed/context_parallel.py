"""attention: prompts of which each rank has some tokens.

The queries stay where they are; the keys and values come to them, piece by piece (SPLIT_KEYS tokens each) in the
order of their absolute numbers, each piece gathered from the ranks that have tokens of it. Where a call needs no more
than two pieces they are attended at once. In longer sequences queries go in blocks, for each of which the pieces come
by anew: the states of a block's rows wait in memory, one array for each level of the tree (gqa.subtrees), and a block
has so many rows that these take no more than one piece does. So what a rank has besides its own tokens is at most two
pieces, what it sends of one, and a piece's size of states, however long the sequence is. While a piece is attended the
next one is on its way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, dtype_name, int_array
from gqa.distributed.agreement import (
    Communicator,
    Exchange,
    agree,
    agreed,
    check_communicator,
    described,
    described_program,
)
from gqa.distributed.prompt_call import PromptCall
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.rules import check_group
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import Table, Tensor, as_tensors
from gqa.shapes import check_shape, check_window, layout_axes
from gqa.signatures import AnyTensor, Flag, Real, Whole, Window


def attention(
    q: AnyArray,
    k: AnyTensor,
    v: AnyTensor,
    comm: Any,
    *,
    positions: Any,
    mask: AnyArray | None = None,
    causal: Flag = False,
    window: Window | None = None,
    scale: Real | None = None,
    softcap: Real = 0.0,
    sinks: AnyArray | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    layout: str = "bhsd",
    out: Array | None = None,
    out_dtype: Any = None,
    return_lse: bool = False,
    num_threads: Whole | None = None,
) -> Array | tuple[Array, Array]:
    """Attention of a prompt whose tokens are spread over the ranks: each gets the output of its own.

    Parameters
    ----------
    q : ndarray, shape (B, Hq, S, D)
        The queries of this rank's tokens.
    k, v : ndarray or Quantized, shape (B, Hkv, S, D) and (B, Hkv, S, Dv)
        The keys and values of the same tokens.
    comm : Comm
        An intracommunicator of mpi4py, or an object with the methods of it that :mod:`gqa.distributed` names.
    positions : array of int, shape (S,)
        Where this rank's tokens stand in the sequence, the same for the whole batch. All ranks together have every
        position from 0 on once; S may differ between ranks. :func:`zigzag` gives balanced ones. Consecutive positions
        are attended together, so runs of at least some hundred are fast.
    mask : ndarray, optional
        bool or float, broadcast to (B, Hq, S, T): rows are this rank's queries, columns all T tokens of the sequence.
    causal, window, scale, softcap, sinks, score_mod, mask_mod, layout, out, out_dtype, return_lse, num_threads
        As in :func:`gqa.attention`. Only out and num_threads, besides the tensors, may differ between ranks.

    Returns
    -------
    out : ndarray, shape (B, Hq, S, Dv)
        The rows that :func:`gqa.attention` gives for this rank's tokens when it is called with all of them, to the last
        bit.
    lse : ndarray, shape (B, Hq, S)
        If return_lse.

    Raises
    ------
    TypeError, ValueError
        As gqa.attention, on all ranks if on any; also if arguments differ between ranks, or the positions are not those
        of one sequence.

    Examples
    --------
    >>> import gqa, gqa.distributed, numpy as np
    >>> from mpi4py import MPI
    >>> comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    >>> q = rng.standard_normal((1, 8, 100, 16), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 100, 16), np.float32)
    >>> own = gqa.distributed.zigzag(100, comm)
    >>> some = (x[:, :, own] for x in (q, k, v))
    >>> out = gqa.distributed.attention(*some, comm, positions=own, causal=True)
    >>> bool((out == gqa.attention(q, k, v, causal=True)[:, :, own]).all())
    True
    """
    comm = check_communicator(comm)
    exchange = Exchange(comm)
    options = Options(
        layout=layout, causal=causal, window=window, scale=scale, softcap=softcap, out_dtype=out_dtype,
        return_lse=return_lse, num_threads=num_threads, mask=mask, sinks=sinks, out=out,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "causal": causal, "window": window, "scale": scale, "softcap": softcap, "layout": layout,
        "out_dtype": str(out_dtype), "return_lse": return_lse, "mask": mask is not None,
    }  # fmt: skip

    def checked() -> tuple[Prompt, Any]:
        program = None if score_mod is None and mask_mod is None else bind(score_mod, mask_mod)
        arguments["score_mod and mask_mod"] = described_program(program)
        return checked_prompt(q, k, v, positions, options, arguments), program

    prompt, program = agreed(exchange, "attention", arguments, checked)
    options = options._replace(program=program)
    everyone = all_positions(comm, prompt.positions)
    call = agreed(
        exchange, "attention", {}, lambda: PromptCall(comm, *prompt.tensors, everyone, prompt.bounds, options)
    )
    agree(exchange, "attention", {}, call.run())
    result: Array | tuple[Array, Array] = call.result()
    return result


class Prompt(NamedTuple):
    """This rank's tokens, and the window with causal in it."""

    tensors: tuple[Array, Tensor, Tensor]
    positions: Table
    bounds: tuple[int | None, int | None]


def checked_prompt(q: Any, k: Any, v: Any, positions: Any, options: Options, arguments: dict[str, Any]) -> Prompt:
    """The arguments, once they fit each other; what ranks must agree on is added to `arguments`."""
    axes = layout_axes(options.layout)
    q, (k, v) = as_array("q", q), as_tensors(k, v)
    heads, tokens = axes.index("heads"), axes.index("tokens")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if len(x.shape) != 4:
            raise ValueError(f"{name} has shape {x.shape}, expected ({', '.join(axes)})")
    own = int_array("positions", positions, (q.shape[tokens],))
    for name, x, head_dim in (("k", k, q.shape[3]), ("v", v, v.shape[3])):
        sizes = list(q.shape)
        sizes[heads], sizes[3] = k.shape[heads], head_dim
        check_shape(name, x.shape, tuple(sizes))
    check_group("k", k.shape[heads], "q", q.shape[heads])
    left, right = check_window(options.window) or (None, None)
    for name, x in (("q", q), ("k", k), ("v", v)):
        sizes = list(x.shape)
        sizes[tokens] = -1
        arguments[name] = ("int8" if isinstance(x, Quantized) else dtype_name(name, x), tuple(sizes))
    arguments["sinks"] = None if options.sinks is None else described(as_array("sinks", options.sinks))
    return Prompt((q, k, v), own, (left, 0 if options.causal else right))


def all_positions(comm: Communicator, own: Table) -> list[Table]:
    """The positions of all ranks; ValueError, on all of them, unless they are those of one sequence."""
    counts = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([own.size], np.int64), counts)
    joined = np.empty(counts.sum(), np.int64)
    comm.Allgatherv(np.ascontiguousarray(own), [joined, counts.tolist()])
    everyone = np.split(joined, np.cumsum(counts)[:-1])
    seen = np.zeros(joined.size, bool)
    for rank, some in enumerate(everyone):
        for i in np.flatnonzero((some < 0) | (some >= joined.size))[:1]:
            raise ValueError(
                f"positions[{i}] is {some[i]} on rank {rank}, expected 0 to {joined.size - 1}, as all ranks together "
                f"have {joined.size} tokens"
            )
        taken = seen[some] | (np.bincount(some, minlength=joined.size)[some] > 1)
        for i in np.flatnonzero(taken)[:1]:
            raise ValueError(f"positions[{i}] is {some[i]} on rank {rank}, as of another token")
        seen[some] = True
    return everyone
