"""attention_vjp: gradients of a prompt of which each rank has some tokens.

A KV head with its query heads is differentiated by itself, and the bits of its gradients follow from all its tokens in
their order. So the tokens of one KV head come together on one rank, are differentiated as in one process, and the
gradients go back to where the tokens are: KV heads are dealt out in turn, one to each rank at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gqa import _core
from gqa.arguments import AnyArray, Array, as_array, dtype_name
from gqa.distributed.agreement import Exchange, agree, agreed, check_communicator, described_program
from gqa.distributed.context_parallel import Prompt, all_positions, checked_prompt
from gqa.distributed.heads import NOTHING, Heads, Unit
from gqa.gradients import AttentionGradients
from gqa.options import Options
from gqa.quantization import Quantized
from gqa.scores.tracing import MaskMod, ScoreMod, bind
from gqa.sequences import Table
from gqa.shapes import check_shape
from gqa.signatures import Flag, Real, Whole, Window


def attention_vjp(
    dout: AnyArray,
    q: AnyArray,
    k: AnyArray,
    v: AnyArray,
    out: AnyArray,
    lse: AnyArray,
    comm: Any,
    *,
    positions: Any,
    dlse: AnyArray | None = None,
    mask: AnyArray | None = None,
    causal: Flag = False,
    window: Window | None = None,
    scale: Real | None = None,
    softcap: Real = 0.0,
    sinks: AnyArray | None = None,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    layout: str = "bhsd",
    num_threads: Whole | None = None,
) -> AttentionGradients:
    """The gradients of sum(dout * out) + sum(dlse * lse) over all ranks, where :func:`attention` gave out and lse.

    Every rank is given all tokens of a KV head in turn, with their queries: besides its own tokens it has at most what
    one KV head (of one batch entry, without sinks) takes. As many ranks share the work as there are such heads.

    Parameters
    ----------
    dout : ndarray, shape (B, Hq, S, Dv)
        Gradient by the output, of any float type, for this rank's tokens.
    q, k, v : ndarray, shape (B, Hq, S, D), (B, Hkv, S, D) and (B, Hkv, S, Dv)
        This rank's tokens, as the forward call had them. Quantised keys have no gradient.
    out, lse : ndarray, shape (B, Hq, S, Dv) and (B, Hq, S)
        What the forward call returned with ``return_lse=True``.
    comm, positions
        As in :func:`attention`; comm needs the method ``Alltoallv``, too.
    dlse : ndarray, shape (B, Hq, S), optional
        Gradient by lse; on all ranks, or on none.
    mask, causal, window, scale, softcap, sinks, score_mod, mask_mod, layout
        As the forward call had them. There is no gradient of the mask.
    num_threads : int, optional
        Default: :func:`gqa.get_num_threads`.

    Returns
    -------
    AttentionGradients
        dq, dk and dv of this rank's tokens, and dsinks, the same on all ranks: what :func:`gqa.attention_vjp` gives for
        all tokens, to the last bit. dmask is None.

    Raises
    ------
    TypeError, ValueError
        As gqa.attention_vjp, on all ranks if on any; also if arguments differ between ranks.

    Examples
    --------
    >>> import gqa, gqa.distributed, numpy as np
    >>> from mpi4py import MPI
    >>> comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    >>> q, dout = rng.standard_normal((2, 1, 8, 100, 16), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 100, 16), np.float32)
    >>> own = gqa.distributed.zigzag(100, comm)
    >>> some = [x[:, :, own] for x in (q, k, v)]
    >>> options = {"positions": own, "causal": True}
    >>> out, lse = gqa.distributed.attention(*some, comm, return_lse=True, **options)
    >>> grads = gqa.distributed.attention_vjp(dout[:, :, own], *some, out, lse, comm, **options)
    >>> grads.dk.shape == some[1].shape
    True
    """
    comm = check_communicator(comm, "Alltoallv")
    exchange = Exchange(comm)
    options = Options(
        layout=layout, causal=causal, window=window, scale=scale, softcap=softcap, num_threads=num_threads, mask=mask,
        sinks=sinks,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "causal": causal, "window": window, "scale": scale, "softcap": softcap, "layout": layout,
        "mask": mask is not None, "dlse": dlse is not None,
    }  # fmt: skip

    def checked() -> tuple[Prompt, dict[str, Array]]:
        arguments["score_mod and mask_mod"] = described_program(bind(score_mod, mask_mod, slope=True))
        prompt = checked_prompt(q, k, v, positions, options, arguments)
        for name, x in zip(("k", "v"), prompt.tensors[1:]):
            if isinstance(x, Quantized):
                raise TypeError(f"{name} is quantised, which has no gradient")
        rows = prompt.tensors[0].shape
        sums = (rows[0], *rows[1:3])
        others = {"dout": (dout, (*rows[:3], prompt.tensors[2].shape[3])), "lse": (lse, sums), "dlse": (dlse, sums)}
        others["out"] = out, others["dout"][1]
        tensors: dict[str, Any] = dict(zip("qkv", prompt.tensors))
        for name, (given, shape) in others.items():
            if given is not None:
                tensors[name] = as_array(name, given)
                check_shape(name, tensors[name].shape, shape)
                arguments[name] = dtype_name(name, tensors[name])
        return prompt, tensors

    prompt, tensors = agreed(exchange, "attention_vjp", arguments, checked)
    everyone = all_positions(comm, prompt.positions)

    def bound(first: tuple[int, int]) -> Any:
        return bind(score_mod, mask_mod, slope=True, first=first)

    call = agreed(exchange, "attention_vjp", {}, lambda: VjpCall(tensors, prompt.positions, everyone, options, bound))
    agree(exchange, "attention_vjp", {}, call.run(comm))
    return call.gradients


class VjpCall:
    """What this rank computes, and what passes through it.

    bound: the program for a call whose batch entry and query head 0 are others.
    """

    def __init__(
        self,
        named: dict[str, Array],
        positions: Table,
        everyone: list[Table],
        options: Options,
        bound: Callable[[tuple[int, int]], Any],
    ) -> None:
        self._everyone, self._options, self._bound = everyone, options, bound
        self._swapped = options.layout == "bshd"
        own, self._tokens = len(positions), sum(map(len, everyone))
        mask = None if options.mask is None else as_array("mask", options.mask)
        if mask is not None and mask.ndim > 1 and mask.shape[-2] not in (1, own):
            expected = (*named["q"].shape[:1], self._rows(named["q"]).shape[1], own, self._tokens)
            raise ValueError(f"mask has shape {mask.shape}, which does not broadcast to {expected}")
        self._check(named, mask)

        # (batch, heads, tokens, channels), lse with one channel; of a mask the columns are its channels.
        self._tensors = {name: self._rows(x[..., None] if name in ("lse", "dlse") else x) for name, x in named.items()}
        batch, heads, self._kv_heads = *self._tensors["q"].shape[:2], self._tensors["k"].shape[1]
        self._mask = None
        if mask is not None:
            self._mask = np.broadcast_to(mask, (batch, heads, own, self._tokens))
        dq, dk, dv = (np.empty(named[name].shape, named[name].dtype) for name in "qkv")
        dsinks = None if options.sinks is None else np.zeros_like(as_array("sinks", options.sinks))
        self.gradients = AttentionGradients(dq, dk, dv, None, dsinks)
        stretches = [(b, b + 1) for b in range(batch)] if options.sinks is None else [(0, batch)]
        self._units = [Unit(b, end, head) for b, end in stretches for head in range(self._kv_heads)]

    def run(self, comm: Any) -> Exception | None:
        """Differentiate; where this rank has an error, which is returned, it goes on passing tokens on."""
        error: Exception | None = None
        ranks = comm.Get_size()
        for first in range(0, len(self._units), ranks):
            units = self._units[first : first + ranks]
            units += [NOTHING] * (ranks - len(units))
            heads = Heads(comm, units, self._everyone, self._kv_heads)
            unit = units[comm.Get_rank()]
            parts = {name: heads.gather(x) for name, x in self._tensors.items()}
            mask = None if self._mask is None else heads.gather(self._mask)
            made = [np.zeros_like(parts[name]) for name in "qkv"]
            if unit is not NOTHING and error is None:
                try:
                    made = self._differentiate(unit, parts, mask)
                except Exception as caught:
                    error = caught
            for gradient, part in zip(self.gradients[:3], made):
                heads.scatter(part, self._rows(gradient))
        if self.gradients.dsinks is not None:
            self._join_sinks(comm, self.gradients.dsinks)
        return error

    def _differentiate(self, unit: Unit, parts: dict[str, Array], mask: Array | None) -> list[Array]:
        """The gradients of this rank's unit by q, k and v; that by sinks goes where it belongs."""
        group = parts["q"].shape[1]
        some = slice(unit.head * group, (unit.head + 1) * group)
        sinks = None if self._options.sinks is None else as_array("sinks", self._options.sinks)[some]
        options = self._options._replace(
            layout="bhsd", mask=mask, sinks=sinks, program=self._bound((unit.first, unit.head * group))
        )
        tensors = {name: x[..., 0] if name in ("lse", "dlse") else x for name, x in parts.items()}
        order = [tensors.get(name) for name in ("dout", "q", "k", "v", "out", "lse", "dlse")]
        *made, _, dsinks = _core.attention_vjp(tuple(order), None, None, False, options)  # type: ignore[arg-type]
        if self.gradients.dsinks is not None:
            self.gradients.dsinks[some] = dsinks
        return made

    def _join_sinks(self, comm: Any, dsinks: Array) -> None:
        """All heads' gradients, each from the rank that has computed it."""
        ranks = comm.Get_size()
        gathered = np.empty((ranks, dsinks.nbytes), np.uint8)
        comm.Allgather(dsinks.view(np.uint8), gathered)
        group = len(dsinks) // self._kv_heads
        for head in range(self._kv_heads):
            some = slice(head * group, (head + 1) * group)
            dsinks[some] = gathered[head % ranks].view(dsinks.dtype)[some]

    def _check(self, named: dict[str, Array], mask: Array | None) -> None:
        """The core's checks of a call with all tokens, before any of them travels."""
        axis = 1 if self._swapped else 2

        def all_tokens(name: str, x: Array) -> tuple[tuple[int, ...], str]:
            shape = list(x.shape)
            shape[2 if name in ("lse", "dlse") and not self._swapped else axis] = self._tokens
            return tuple(shape), dtype_name(name, x)

        order = ("dout", "q", "k", "v", "out", "lse", "dlse")
        tensors = tuple(all_tokens(name, named[name]) if name in named else None for name in order)
        shape = () if mask is None else mask.shape
        if len(shape) > 1 and shape[-2] != 1:
            shape = (*shape[:-2], self._tokens, shape[-1])
        sinks = self._options.sinks
        options = self._options._replace(
            mask=None if mask is None else (shape, str(mask.dtype)),
            sinks=None
            if sinks is None
            else (as_array("sinks", sinks).shape, dtype_name("sinks", as_array("sinks", sinks))),
            program=self._bound((0, 0)),
        )
        _core.check_attention_vjp(tensors, None, None, False, options)  # type: ignore[arg-type]

    def _rows(self, x: Array) -> Array:
        return x.swapaxes(1, 2) if self._swapped else x
