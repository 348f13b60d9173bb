"""Prompts whose tokens are spread over ranks, which here are threads: the rows of one call, to the last bit."""

import numpy as np
import pytest

import gqa
import gqa.distributed
from compare import assert_same_bits
from thread_ranks import run_on_ranks

PIECE = gqa.SPLIT_KEYS
RANKS = [1, 2, 3, 8]


def dealt(deal, length, comm):
    """The positions of a rank's tokens."""
    if deal == "zigzag":
        return gqa.distributed.zigzag(length, comm)
    ranks, rank = comm.Get_size(), comm.Get_rank()
    if deal == "contiguous":
        return np.arange(length * rank // ranks, length * (rank + 1) // ranks)
    if deal == "last rank":
        return np.arange(length if rank == ranks - 1 else 0)
    stretches = np.array_split(np.random.default_rng(5).permutation(-(-length // 300)), ranks)[rank]
    some = [np.arange(i * 300, min((i + 1) * 300, length)) for i in stretches]
    return np.concatenate([np.arange(0), *some])


def check(comm, deal, q, k, v, mask=None, **options):
    """q, k and v are those of all tokens, and in the layout "bhsd"."""
    own = dealt(deal, q.shape[2], comm)
    swapped = options.get("layout") == "bshd"

    def some(x):
        x = x[:, :, own]
        return x.swapaxes(1, 2) if swapped else x

    want = gqa.attention(
        *(x.swapaxes(1, 2) if swapped else x for x in (q, k, v)), mask=mask, return_lse=True, **options
    )
    if mask is not None:
        mask = np.broadcast_to(mask, (*mask.shape[:2], q.shape[2], q.shape[2]))[:, :, own]
    got = gqa.distributed.attention(
        some(q), some(k), some(v), comm, positions=own, mask=mask, return_lse=True, **options
    )  # fmt: skip
    for one, other in zip(got, want):
        assert_same_bits(one, np.ascontiguousarray(other[:, own] if swapped else other[:, :, own]))


def on_ranks(ranks, work):
    for result in run_on_ranks(ranks, work):
        if result is not None:
            raise result


def prompt(length, *, batch=1, heads=2, kv_heads=1, head_dim=4, dtype="float32"):
    rng = np.random.default_rng(length)
    q = rng.standard_normal((batch, heads, length, head_dim), np.float32).astype(dtype)
    return q, *rng.standard_normal((2, batch, kv_heads, length, head_dim), np.float32).astype(dtype)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("deal", ["zigzag", "contiguous", "last rank", "scattered"])
@pytest.mark.parametrize("length", [1, 5, 100, 2000])
def test_short_prompts(ranks, deal, length):
    """Also those whose share would be so few rows that they took another loop."""
    tensors = prompt(length, batch=2, heads=6, kv_heads=2)

    def work(comm):
        check(comm, deal, *tensors, causal=True)
        check(comm, deal, *tensors, layout="bshd", sinks=np.linspace(-1, 1, 6))
        check(comm, deal, *tensors, mask_mod=lambda b, h, i, j: (i >= j) & (j % 5 != h % 5), softcap=2.0)
        if length <= 100:
            mask = np.random.default_rng(0).random((2, 6, length, length)) < 0.7
            check(comm, deal, *tensors, mask=mask, causal=True)
            check(comm, deal, *tensors, mask=mask[:, :1, :1].astype(np.float32), window=(7, 3), softcap=5.0)

    on_ranks(ranks, work)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("pieces", [1.7, 5.2])
def test_prompts_of_several_pieces(ranks, pieces):
    """Those of more than two go block by block, with states that wait."""
    tensors = prompt(int(pieces * PIECE))

    def work(comm):
        check(comm, "zigzag", *tensors, causal=True, window=(3 * PIECE, None))
        check(comm, "zigzag", *tensors, mask_mod=lambda b, h, i, j: (i >= j) & (j % 500 < 300))
        check(comm, "contiguous", *tensors, window=(100, 5), causal=False)

    on_ranks(ranks, work)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8"])
@pytest.mark.parametrize("pieces", [0.2, 2.1])
def test_types(dtype, pieces):
    kind = {"int8": "float32", "bfloat16": "float32"}.get(dtype, dtype)
    q, k, v = prompt(int(pieces * PIECE), dtype=kind)
    if dtype == "bfloat16":
        q, k, v = (x.astype(pytest.importorskip("ml_dtypes").bfloat16) for x in (q, k, v))
    if dtype == "int8":
        k, v = gqa.quantize(k), gqa.quantize(v)

    def work(comm):
        own = gqa.distributed.zigzag(q.shape[2], comm)
        want = gqa.attention(q, k, v, causal=True, window=(700, None))
        got = gqa.distributed.attention(
            q[:, :, own], k[:, :, own], v[:, :, own], comm, positions=own, causal=True, window=(700, None)
        )
        assert_same_bits(got, want[:, :, own].copy())

    on_ranks(2, work)


def test_output():
    q, k, v = prompt(50)

    def work(comm):
        own = gqa.distributed.zigzag(50, comm)
        some = [x[:, :, own] for x in (q, k, v)]
        out = np.zeros((1, 2, len(own), 4), np.float32)
        assert gqa.distributed.attention(*some, comm, positions=own, out=out) is out
        assert_same_bits(out, gqa.attention(q, k, v)[:, :, own].copy())
        half = gqa.distributed.attention(
            some[0].astype(np.float16), *some[1:], comm, positions=own, out_dtype="float32"
        )
        assert half.dtype == np.float32

    on_ranks(3, work)


def test_memory_is_that_of_a_few_pieces():
    """Buffers and states together, of a prompt of 14 pieces on two ranks."""
    from gqa.distributed.prompt_call import PromptCall
    from gqa.options import Options

    q, k, v = prompt(14 * PIECE, heads=4, kv_heads=2, head_dim=8)

    def work(comm):
        everyone = [dealt("contiguous", 14 * PIECE, type(comm)(comm.board, rank)) for rank in range(2)]
        own = everyone[comm.Get_rank()]
        some = (x[:, :, own] for x in (q, k, v))
        call = PromptCall(comm, *some, everyone, (None, 0), Options(causal=True))
        sizes = [x.nbytes for x in (call._waiting, call._pieces._buffers, call._pieces._sent)]
        piece = k[:, :, :PIECE].nbytes + v[:, :, :PIECE].nbytes
        assert sum(sizes) <= 4 * piece
        return sizes

    for result in run_on_ranks(2, work):
        assert isinstance(result, list), result


# ---- errors ----------------------------------------------------------------------------------------------------------


def error_of(change, ranks=3):
    """The error, the same on all ranks, of a call with 30 tokens; change(rank): arguments that are others."""

    def work(comm):
        own = np.arange(30)[comm.Get_rank() * 10 :][:10]
        x = np.zeros((1, 2, 10, 4), np.float32)
        arguments = {"q": x, "k": x, "v": x, "positions": own} | change(comm.Get_rank())
        gqa.distributed.attention(comm=comm, **arguments)

    results = run_on_ranks(ranks, work)
    assert all(isinstance(x, Exception) for x in results), results
    assert len({(type(x), str(x)) for x in results}) == 1, results
    return results[0]


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda rank: {"q": zeros(1, 3, 10, 4)}, ValueError, "k has 2 heads, which does not divide the 3 heads of q"),
        (lambda rank: {"q": zeros(2, 10, 4)} if rank == 2 else {}, ValueError, r"q has shape \(2, 10, 4\).*on rank 2"),
        (lambda rank: {"v": zeros(1, 2, 9, 4)}, ValueError, "v has shape"),
        (lambda rank: {"k": zeros(1, 2, 10, 4, dtype=int)} if rank else {}, TypeError, "k has dtype int64.*on rank 1"),
        (lambda rank: {"positions": [0.5] * 10}, TypeError, "positions has dtype float64, expected integers"),
        (lambda rank: {"positions": np.arange(10)}, ValueError, r"positions\[0\] is 0 on rank 1, as of another token"),
        (lambda rank: {"positions": np.full(10, 3)}, ValueError, r"positions\[0\] is 3 on rank 0, as of another token"),
        (lambda rank: {"positions": np.arange(30, 40)}, ValueError, r"is 30 on rank 0, expected 0 to 29"),
        (lambda rank: {"positions": np.arange(9)}, ValueError, r"positions has shape \(9,\), expected \(10,\)"),
        (lambda rank: {"causal": rank == 1}, ValueError, "causal differs between ranks: False on rank 0"),
        (lambda rank: {"softcap": np.nan}, ValueError, "softcap is nan"),
        (lambda rank: {"window": (-1, 2)} if rank == 1 else {}, ValueError, "window.*on rank 1 of 3"),
        (lambda rank: {"mask": zeros(1, 2, 10, 29)}, ValueError, "mask has shape"),
        (lambda rank: {"out": zeros(1, 2, 10, 5)} if rank == 1 else {}, ValueError, "out has shape.*on rank 1 of 3"),
        (lambda rank: {"q": zeros(1, 2, 10, 4, dtype="f2")} if rank else {}, ValueError, "q differs between ranks"),
        (lambda rank: {"v": zeros(1, 2, 10, 5)} if rank else {}, ValueError, "v differs between ranks"),
        (lambda rank: {"sinks": zeros(2) + rank}, ValueError, "sinks differs between ranks"),
    ],
)  # fmt: skip
def test_errors(change, kind, message):
    with pytest.raises(kind, match=message):
        raise error_of(change)


@pytest.mark.parametrize(("length", "kind"), [(-1, ValueError), (2.5, TypeError)])
def test_zigzag_refuses(length, kind):
    for error in run_on_ranks(2, lambda comm: gqa.distributed.zigzag(length, comm)):
        assert type(error) is kind
