"""A sharded cache against a local one: the same bits from any number of ranks, which here are threads."""

import numpy as np
import pytest

import gqa
import gqa.distributed
from compare import assert_same_bits
from thread_ranks import run_on_ranks

PIECE = gqa.SPLIT_KEYS
RANKS = [1, 2, 3, 8]


def both(comm, *sizes, **options):
    return gqa.KVCache(*sizes, **options), gqa.distributed.ShardedKVCache(comm, *sizes, **options)


def check(local, sharded, *arguments, **options):
    """One call on both caches."""
    for one, other in zip(
        local.attend(*arguments, return_lse=True, **options), sharded.attend(*arguments, return_lse=True, **options)
    ):
        assert_same_bits(other, one)
    assert (sharded.lengths == local.lengths).all()


def on_ranks(ranks, work):
    for result in run_on_ranks(ranks, work):
        if result is not None:
            raise result


def tokens(rng, *shape):
    return rng.standard_normal((2, *shape), np.float32)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "float64"])
def test_steps_of_any_size(ranks, dtype):
    """Ragged lengths, grouped heads, chunks for both loops, prompts past a piece, tokens dropped and rows repeated."""

    def work(comm):
        rng = np.random.default_rng(1)
        local, sharded = both(comm, 2, 2, 3 * PIECE, 8, dtype=dtype, v_head_dim=5)
        for new, queries in ((PIECE + 5, 2), (1, 1), (PIECE // 2, 40), (3, 3), (1, 1)):
            k, v = tokens(rng, 2, 2, new, 8)
            q = rng.standard_normal((2, 6, queries, 8), np.float32)
            check(local, sharded, q, k, v[..., :5], lengths=[new, rng.integers(new + 1)], scale=0.5)
        for cache in (local, sharded):
            cache.truncate(np.maximum(cache.lengths - 7, 0)).select([1, 0, 1]).grow(4 * PIECE)
        check(local, sharded.copy(), rng.standard_normal((3, 6, 2, 8), np.float32))
        k, v = tokens(rng, 3, 2, 9, 8)
        check(local.reset(), sharded.reset(), rng.standard_normal((3, 6, 9, 8), np.float32), k, v[..., :5])

    on_ranks(ranks, work)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_options(ranks, layout):
    def work(comm):
        rng = np.random.default_rng(2)
        local, sharded = both(comm, 1, 2, 3 * PIECE, 8, layout=layout)
        slopes = np.linspace(0.1, 1, 4).astype(np.float32)
        k, v = tokens(rng, 1, 2, 2 * PIECE + 9, 8)
        bhsd = layout == "bhsd"
        if not bhsd:
            k, v = (x.swapaxes(1, 2).copy() for x in (k, v))
        local.append(k, v)
        sharded.append(k, v)
        for queries in (1, 30):
            q = rng.standard_normal((1, 4, queries, 8) if bhsd else (1, queries, 4, 8), np.float32)
            mask = rng.random((1, 4, queries, 2 * PIECE + 9)) < 0.5
            for options in (
                {"window": (PIECE, None)}, {"window": (10, 20), "causal": False}, {"softcap": 2.0},
                {"sinks": np.linspace(-1, 3, 4)}, {"mask": mask}, {"causal": False, "num_threads": 2},
            ):  # fmt: skip
                check(local, sharded, q, **options)
            check(
                local, sharded, q, score_mod=lambda s, b, h, i, j: s - slopes[h] * (i - j) / 100,
                mask_mod=lambda b, h, i, j: (j % 7 != 3) & (i - j < PIECE + 77),
            )  # fmt: skip
            half = q.astype(np.float16)
            check(local, sharded, half)
            check(local, sharded, half, out_dtype="float32")
            out = np.zeros(q.shape, np.float32)
            assert sharded.attend(q, out=out) is out
            assert_same_bits(out, local.attend(q))

    on_ranks(ranks, work)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("window", "capacity"), [(100, 130), (PIECE, PIECE + 900), (2 * PIECE + 1, 3 * PIECE)])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rings(ranks, window, capacity, dtype):
    def work(comm):
        rng = np.random.default_rng(3)
        local, sharded = both(comm, 2, 1, capacity, 8, window=window, dtype=dtype)
        for new in (PIECE - 3, 1, 1, 1, 1, 50, 3 * PIECE, 7, 1):
            k, v = tokens(rng, 2, 1, new, 8)
            q = rng.standard_normal((2, 2, min(new, 60), 8), np.float32)
            check(local, sharded, q, k, v, lengths=[new, new // 2])
        check(local, sharded, rng.standard_normal((2, 2, 1, 8), np.float32), window=(40, 0))

    on_ranks(ranks, work)


@pytest.mark.parametrize("most", [0, 3000])
def test_states_that_do_not_travel_with_the_header(monkeypatch, most):
    """All of them, and those of many queries."""
    monkeypatch.setattr("gqa.distributed.sharded_cache.MOST_BYTES", most)

    def work(comm):
        rng = np.random.default_rng(4)
        local, sharded = both(comm, 2, 1, 3 * PIECE, 8)
        for new in (PIECE + 5, 1, 1, 60, 1, PIECE, 1, 1):
            k, v = tokens(rng, 2, 1, new, 8)
            check(local, sharded, rng.standard_normal((2, 4, min(new, 60), 8), np.float32), k, v)

    on_ranks(3, work)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_rank_stores_its_share(ranks):
    def work(comm):
        local, sharded = both(comm, 1, 1, 12 * PIECE, 8)
        assert sharded.nbytes == local.nbytes // ranks
        assert (sharded.capacity, sharded.dtype, sharded.layout) == (12 * PIECE, np.float32, "bhsd")

    on_ranks(ranks, work)


# ---- errors ----------------------------------------------------------------------------------------------------------


def messages(results):
    assert all(isinstance(x, Exception) for x in results), results
    assert len({(type(x), str(x)) for x in results}) == 1, results
    return results[0]


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def cache_on(comm):
    return gqa.distributed.ShardedKVCache(comm, 1, 2, 10, 8)


GOOD = {"q": zeros(1, 4, 3, 8), "k": zeros(1, 2, 3, 8), "v": zeros(1, 2, 3, 8)}
BAD = {
    "heads of q": ({"q": zeros(1, 3, 3, 8)}, ValueError, "does not divide the 3 heads of q"),
    "k": ({"k": zeros(1, 2, 3, 7)}, ValueError, "k has shape"),
    "dtype": ({"v": zeros(1, 2, 3, 8, dtype=np.int32)}, TypeError, "v has dtype int32"),
    "too many": ({"k": zeros(1, 2, 11, 8), "v": zeros(1, 2, 11, 8)}, ValueError, "past the capacity of 10"),
    "lengths": ({"lengths": [4]}, ValueError, r"lengths\[0\] is 4"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap"),
    "out": ({"out": zeros(1, 4, 3, 7)}, ValueError, "out has shape"),
    "mask": ({"mask": zeros(1, 4, 3, 9)}, ValueError, "mask has shape"),
    "window": ({"window": (1,)}, TypeError, "window"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["everywhere", "on one rank"])
def test_bad_arguments(bad, where):
    """The same error everywhere, nothing written, and the ranks still in step."""
    change, kind, message = BAD[bad]
    caches = [None] * 3

    def work(comm):
        caches[comm.Get_rank()] = cache = cache_on(comm)
        cache.append(zeros(1, 2, 1, 8), zeros(1, 2, 1, 8))
        cache.attend(**GOOD | (change if where == "everywhere" or comm.Get_rank() == 1 else {}))

    error = messages(run_on_ranks(3, work))
    with pytest.raises(kind, match=message):
        raise error
    assert ("(on rank 1 of 3)" in str(error)) == (where == "on one rank")
    assert [cache.lengths.tolist() for cache in caches] == [[1]] * 3


DIFFERENT = {
    "q": lambda rank: {"q": GOOD["q"] + (rank == 2)},
    "k": lambda rank: {"k": GOOD["k"] + (rank == 2)},
    "scale": lambda rank: {"scale": 1.0 + rank},
    "return_lse": lambda rank: {"return_lse": rank == 0},
    "lengths": lambda rank: {"lengths": [3 - (rank == 1)]},
    "sinks": lambda rank: {"sinks": np.full(4, rank, float)},
    "mask": lambda rank: {"mask": None if rank else np.ones((3, 3), bool)},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_arguments(name):
    def work(comm):
        cache_on(comm).attend(**GOOD | DIFFERENT[name](comm.Get_rank()))

    error = messages(run_on_ranks(3, work))
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{name} differs between ranks")


def test_what_is_past_the_lengths_may_differ():
    def work(comm):
        k = GOOD["k"].copy()
        k[:, :, 2:] = comm.Get_rank()
        cache_on(comm).attend(GOOD["q"], k, GOOD["v"], lengths=[2])

    on_ranks(3, work)


def test_the_order_in_memory_may_differ():
    """And the order of numbers may not."""
    rng = np.random.default_rng(0)
    q, mask = rng.standard_normal((1, 4, 3, 8), np.float32), rng.random((3, 3)) < 0.5

    def work(comm, q, mask):
        order = "F" if comm.Get_rank() else "C"
        cache_on(comm).attend(q.copy(order), GOOD["k"].copy(order), GOOD["v"], mask=mask.copy(order))

    on_ranks(3, lambda comm: work(comm, q, mask))
    error = messages(run_on_ranks(3, lambda comm: work(comm, q[..., :: -1 if comm.Get_rank() else 1], mask)))
    assert str(error).startswith("q differs between ranks")


def test_other_calls():
    def change(comm, bad):
        cache = cache_on(comm).append(GOOD["k"], GOOD["v"])
        bad(cache, comm.Get_rank())

    for bad, message in (
        (lambda cache, rank: cache.truncate(rank), "lengths differs between ranks"),
        (lambda cache, rank: cache.truncate(4 if rank == 1 else 2), r"lengths\[0\] is 4.*on rank 1 of 3"),
        (lambda cache, rank: cache.select([1]), r"rows\[0\] is 1"),
        (lambda cache, rank: cache.grow(2), "capacity is 2, expected at least 3"),
        (lambda cache, rank: cache.reset() if rank else cache.copy(), "rank 1 calls truncate while rank 0 calls copy"),
        (lambda cache, rank: cache.append(GOOD["k"], GOOD["v"] if rank else None), "k is given without v"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            raise messages(run_on_ranks(3, lambda comm, bad=bad: change(comm, bad)))


def test_constructors():
    def make(comm, **change):
        arguments = {"batch": 1, "kv_heads": 1, "capacity": 1, "head_dim": 1} | change
        gqa.distributed.ShardedKVCache(comm, **arguments)

    for change, kind, message in (
        (lambda rank: {"batch": -rank}, ValueError, "batch is -1"),
        (lambda rank: {"capacity": 1 + rank}, ValueError, "capacity differs between ranks: 1 on rank 0, 2 on rank 1"),
        (lambda rank: {"dtype": "int4"}, TypeError, "int4"),
        (lambda rank: {"window": 2}, ValueError, "capacity is 1, expected at least the window of 2"),
    ):
        with pytest.raises(kind, match=message):
            raise messages(run_on_ranks(2, lambda comm, change=change: make(comm, **change(comm.Get_rank()))))


class Inter:
    Get_rank = Get_size = Allgather = Allgatherv = Iallgatherv = None

    def __getattribute__(self, name):
        return lambda *arguments: True


def test_what_is_no_intracommunicator():
    for comm, kind, message in (
        (None, TypeError, "comm is a NoneType, expected an intracommunicator of mpi4py"),
        (Inter(), ValueError, "comm is an intercommunicator"),
    ):
        with pytest.raises(kind, match=message):
            cache_on(comm)
        with pytest.raises(kind, match=message):
            gqa.distributed.zigzag(1, comm)
