"""Threads with small stacks, and limits of memory: a right answer or a MemoryError, and the process goes on."""

import sys

import pytest

import gqa
from child import output_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")

# Every loop and product: prompts, few rows, long keys, half precision, double, int8, rotary, merging.
CALLS = """
import numpy as np, gqa
rng = np.random.default_rng(0)
def arrays(queries, keys, dtype="f4", channels=128):
    return (rng.standard_normal(shape).astype(dtype)
            for shape in ((1, 8, queries, channels), (1, 2, keys, channels), (1, 2, keys, channels)))
def calls(threads):
    for queries, keys in ((1, 900), (4, 7000), (64, 300), (40, 7000)):
        for dtype in ("f4", "f8", "f2"):
            q, k, v = arrays(queries, keys, dtype)
            mask = np.ones((queries, keys), bool)
            yield gqa.attention(q, k, v, causal=True, mask=mask, softcap=20.0, num_threads=threads)
    q, k, v = arrays(2, 3000)
    yield gqa.attention(q, gqa.quantize(k), gqa.quantize(v), num_threads=threads)
    yield gqa.rotary(k, *gqa.rotary_tables(3000, 128), num_threads=threads)
    yield gqa.merge_states([q, q], [np.zeros(q.shape[:-1], "f4")] * 2, num_threads=threads)[0]
    cache = gqa.PagedKVCache(40, 16, 2, 128)
    yield cache.attend([cache.add()], q[0].swapaxes(0, 1), [2], k[0, :, :2].swapaxes(0, 1), v[0, :, :2].swapaxes(0, 1))
"""


@pytest.mark.parametrize("isa", gqa.info()["isas"])
def test_a_thread_with_a_small_stack(isa):
    """128 KiB for Python and NumPy's own calls; the kernels' share of it is below 64."""
    done = output_of(
        f"""{CALLS}
import threading
bits = []
def work():
    for result in calls(1):
        bits.append(result.tobytes())
threading.stack_size(128 * 1024)
thread = threading.Thread(target=work); thread.start(); thread.join()
rng = np.random.default_rng(0)
print(bits == [result.tobytes() for result in calls(1)])
""",
        GQA_ISA=isa,
    )
    assert done == "True"


@pytest.mark.parametrize("isa", gqa.info()["isas"])
def test_threads_of_the_pool_with_small_stacks(isa):
    """They run the kernels and nothing else."""
    done = output_of(
        f"""{CALLS}
import ctypes
libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
assert libc.pthread_attr_init(attributes) == 0
assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(64 * 1024)) == 0
assert libc.pthread_setattr_default_np(attributes) == 0
bits = [result.tobytes() for result in calls(3)]
rng = np.random.default_rng(0)
print(bits == [result.tobytes() for result in calls(1)])
""",
        GQA_ISA=isa,
    )
    assert done == "True"


def test_a_limit_of_memory():
    """A result that does not fit, scratch memory that does not fit, a cache that does not fit: MemoryError, no leak."""
    done = output_of(
        """
        import resource
        import numpy as np, gqa

        q = np.ones((1, 1, 1, 64), np.float32)
        expected = gqa.attention(q, q, q).tobytes()
        used = lambda: int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used() + 2**26, resource.RLIM_INFINITY))
        wide = np.broadcast_to(q, (1, 1, 2**20, 64))  # 256 MiB
        keys = np.broadcast_to(q, (1, 1, 4, 64))
        # Copies of channels that are not contiguous, and a state for every row.
        sparse = np.broadcast_to(q[..., :1], (1, 2**14, 2**8, 64))
        attempts = {
            "out": lambda: gqa.attention(wide, keys, keys, num_threads=1),
            "copy": lambda: gqa.attention(sparse, keys, keys, num_threads=1),
            "cache": lambda: gqa.KVCache(1, 1, 2**20, 64),
            "pages": lambda: gqa.PagedKVCache(2**16, 16, 1, 64),
            "rotary": lambda: gqa.rotary(wide, *np.ones((2, 1, 32), np.float32), positions=np.zeros(2**20, int)),
        }
        sizes = []
        for turn in range(3):
            for name, attempt in attempts.items():
                try:
                    attempt()
                except MemoryError:
                    continue
                print(name, "fits")
            assert gqa.attention(q, q, q).tobytes() == expected
            sizes.append(used())
        print("grows by", sizes[2] - sizes[1])
        """
    )
    assert done == "grows by 0"
