"""Gradients of prompts spread over ranks, which here are threads: those of one call, to the last bit."""

import numpy as np
import pytest

import gqa
import gqa.distributed
from compare import assert_same_bits
from thread_ranks import run_on_ranks

RANKS = [1, 2, 3, 4]


def scattered(length, ranks, rank):
    """The positions of a rank's tokens: stretches of 7, in no order, and none on the last of three ranks."""
    order = np.random.default_rng(3).permutation(-(-length // 7))
    own = np.array_split(order, ranks - (ranks == 3))[rank] if not (ranks == 3 and rank == 2) else []
    return np.concatenate([np.arange(0), *(np.arange(i * 7, min(i * 7 + 7, length)) for i in own)])


def problem(length, batch, heads, kv_heads, head_dim, v_head_dim, dtype="float32"):
    rng = np.random.default_rng(length)

    def random(heads, channels):
        return rng.standard_normal((batch, heads, length, channels), np.float32).astype(dtype)

    q, k = random(heads, head_dim), random(kv_heads, head_dim)
    return random(heads, v_head_dim), q, k, random(kv_heads, v_head_dim)


def check(ranks, tensors, *, dlse=None, mask=None, deal=None, **options):
    """All tokens in one process, and each rank's in turn."""
    dout, q, k, v = tensors
    out, lse = gqa.attention(q, k, v, mask=mask, return_lse=True, **options)
    want = gqa.attention_vjp(dout, q, k, v, out, lse, dlse=dlse, mask=mask, **options)
    length = q.shape[2]
    swapped = options.get("layout") == "bshd"
    if swapped:
        length = q.shape[1]

    def work(comm):
        own = deal(length, comm) if deal else scattered(length, comm.Get_size(), comm.Get_rank())

        def some(x, axis=2):
            return None if x is None else np.take(x, own, 1 if swapped else axis)

        own_mask = None if mask is None else np.broadcast_to(mask, (*mask.shape[:-2], length, length))[..., own, :]
        got = gqa.distributed.attention_vjp(
            *map(some, (dout, q, k, v, out, lse)), comm, positions=own, dlse=some(dlse), mask=own_mask, **options
        )
        for one, all_tokens in zip(got[:3], want):
            assert_same_bits(one, some(all_tokens))
        assert got.dmask is None
        if want.dsinks is None:
            assert got.dsinks is None
        else:
            assert_same_bits(got.dsinks, want.dsinks)

    for result in run_on_ranks(ranks, work):
        if result is not None:
            raise result


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("length", [0, 1, 30, 500])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_options(ranks, length, kv_heads):
    """Fewer KV heads than ranks as well, and as many as do not divide."""
    tensors = problem(length, 2, 6, kv_heads, 8, 5)
    slopes = np.linspace(0.1, 1, 6).astype(np.float32)
    check(ranks, tensors, causal=True, deal=gqa.distributed.zigzag)
    check(ranks, tensors, window=(20, 3), softcap=2.0, scale=0.2)
    check(ranks, tensors, causal=True, sinks=np.linspace(-1, 1, 6))
    dlse = np.random.default_rng(1).standard_normal((2, 6, length), np.float32)
    check(ranks, tensors, dlse=dlse)
    check(
        ranks, tensors, score_mod=lambda s, b, h, i, j: s * (1 + b) - slopes[h] * (i - j),
        mask_mod=lambda b, h, i, j: (i >= j) & (j % 5 != (h + b) % 5),
    )  # fmt: skip
    swapped = tuple(np.ascontiguousarray(x.swapaxes(1, 2)) for x in tensors)
    check(ranks, swapped, dlse=dlse.swapaxes(1, 2).copy(), layout="bshd")


@pytest.mark.parametrize("ranks", [1, 3])
def test_masks(ranks):
    tensors = problem(60, 2, 4, 2, 8, 8)
    rng = np.random.default_rng(2)
    for shape in ((60, 60), (2, 1, 60, 60), (1, 4, 60, 60), (2, 1, 1, 60)):
        check(ranks, tensors, mask=rng.random(shape) < 0.7)
    check(ranks, tensors, mask=rng.standard_normal((1, 4, 60, 60), np.float32), causal=True)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types(ranks, dtype):
    tensors = problem(3000, 1, 4, 2, 8, 8, dtype)
    check(ranks, tensors, causal=True, deal=gqa.distributed.zigzag)


def test_a_traced_program():
    program = gqa.trace(lambda s, b, h, i, j: s - h * (i - j) / 7)
    check(2, problem(40, 1, 4, 2, 8, 8), score_mod=program, causal=True)


# ---- errors ----------------------------------------------------------------------------------------------------------


def error_of(change):
    """The error, the same on all ranks, of a call with 30 tokens; change(rank): arguments that are others."""

    def work(comm):
        own = np.arange(30)[comm.Get_rank() * 10 :][:10]
        x = np.zeros((1, 2, 10, 4), np.float32)
        arguments = dict.fromkeys(("dout", "q", "k", "v", "out"), x) | {"lse": x[..., 0], "positions": own}
        gqa.distributed.attention_vjp(comm=comm, **arguments | change(comm.Get_rank()))

    results = run_on_ranks(3, work)
    assert all(isinstance(x, Exception) for x in results), results
    assert len({(type(x), str(x)) for x in results}) == 1, results
    return results[0]


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda rank: {"dout": zeros(1, 2, 10, 5)} if rank == 1 else {}, ValueError, "dout has shape.*on rank 1 of 3"),
        (lambda rank: {"lse": zeros(1, 2, 9)}, ValueError, "lse has shape"),
        (lambda rank: {"lse": zeros(1, 2, 10, dtype=np.float16)}, TypeError, "lse"),
        (lambda rank: {"out": zeros(1, 2, 10, 4, dtype=int)}, TypeError, "out has dtype int64"),
        (lambda rank: {"k": gqa.quantize(zeros(1, 2, 10, 4))}, TypeError, "k is quantised, which has no gradient"),
        (lambda rank: {"mask": zeros(1, 2, 10, 29) if rank == 2 else zeros(30)}, ValueError, "mask has shape"),
        (lambda rank: {"mask": zeros(1, 2, 9, 30)}, ValueError, "mask has shape"),
        (lambda rank: {"sinks": zeros(3)}, ValueError, "sinks has shape"),
        (lambda rank: {"causal": rank == 1}, ValueError, "causal differs between ranks: False on rank 0"),
        (lambda rank: {"dlse": zeros(1, 2, 10) if rank else None}, ValueError, "dlse differs between ranks"),
        (lambda rank: {"softcap": -1.0}, ValueError, "softcap is -1.0"),
        (lambda rank: {"positions": np.arange(10)}, ValueError, r"positions\[0\] is 0 on rank 1, as of another token"),
    ],
)  # fmt: skip
def test_errors(change, kind, message):
    with pytest.raises(kind, match=message):
        raise error_of(change)


def test_a_communicator_without_alltoallv():
    class Old:
        Get_rank = Get_size = Is_inter = Allgather = Allgatherv = Iallgatherv = lambda *arguments: 0

    x = zeros(1, 1, 1, 1)
    with pytest.raises(TypeError, match="Alltoallv is missing"):
        gqa.distributed.attention_vjp(x, x, x, x, x, x[..., 0], Old(), positions=[0])
