"""The backward pass needs 12 MiB a thread besides the gradients, and float32 sums of dk and dv in half precision."""

import sys

import pytest

from child import output_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20
# The tensors q, k and v, and what else the calls have: S x T scores would need tens of MiB at least.
CALLS = {
    "causal": ("ones(1, 32, 2048, 128), ones(1, 8, 2048, 128), ones(1, 8, 2048, 128)", "causal=True"),
    "full": ("ones(1, 12, 2048, 64), ones(1, 12, 2048, 64), ones(1, 12, 2048, 64)", ""),
    "double": ("ones(1, 8, 1024, 64, 'f8'), ones(1, 2, 4096, 64, 'f8'), ones(1, 2, 4096, 64, 'f8')", ""),
    "half": ("ones(1, 8, 1024, 128, 'f2'), ones(1, 2, 2**15, 128, 'f2'), ones(1, 2, 2**15, 128, 'f2')", ""),
    "one head for many": ("ones(1, 64, 512, 64), ones(1, 1, 2048, 64), ones(1, 1, 2048, 64)", ""),
    "tokens first": ("ones(1, 2048, 16, 64), ones(1, 2048, 4, 64), ones(1, 2048, 4, 64)", "layout='bshd', causal=True"),
    "a mask that is broadcast": ("3 * [ones(1, 8, 2048, 32)]", "mask=ones(2048), sinks=ones(8)"),
    "many channels": ("ones(1, 16, 256, 576), ones(1, 1, 1024, 576), ones(1, 1, 1024, 512)", ""),
    "a window": ("ones(1, 4, 8192, 64), ones(1, 1, 8192, 64), ones(1, 1, 8192, 64)", "window=(100, 0)"),
    "a score function": ("3 * [ones(1, 8, 2048, 64)]", "score_mod=lambda score, b, h, i, j: score - 0.1 * (i - j)"),
    "a small batch": ("3 * [ones(64, 4, 64, 64)]", "causal=True"),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_peak_memory(name, threads):
    """In a process in which nothing has left memory behind that could be used again, such as a forward call."""
    tensors, options = CALLS[name]
    printed = output_of(
        f"""
        import os, re
        import numpy as np, gqa

        def ones(*shape, dtype="f4"):
            *shape, dtype = shape if isinstance(shape[-1], str) else (*shape, dtype)
            x = np.empty(shape, dtype)
            x.fill(1)  # touches every page, and needs nothing else
            return x

        def bytes_of(field):
            return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

        def gradients(q, k, v, threads, **options):
            out = ones(*q.shape[:3], v.shape[3], q.dtype.str)
            lse = ones(*q.shape[:3], "f8" if q.itemsize == 8 else "f4")
            before = bytes_of("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
            found = gqa.attention_vjp(out, q, k, v, out, lse, num_threads=threads, **options)
            return bytes_of("VmHWM") - before, sum(x.nbytes for x in found if x is not None)

        if not os.access("/proc/self/clear_refs", os.W_OK):
            raise SystemExit
        gqa.attention(*3 * [ones(1, 2, 300, 64)], num_threads=2)  # starts the threads
        q, k, v = {tensors}
        wide = 4 * (k.size + v.size) if q.dtype == np.float16 else 0
        extra, results = gradients(q, k, v, {threads}, {options})
        print(extra, results + wide)
        """
    )
    if not printed:
        pytest.skip("peaks of memory cannot be measured here")
    extra, results = map(int, printed.split())
    assert extra <= 12 * MIB * threads + results, f"{(extra - results) / MIB:.1f} MiB"
