"""Nothing grows with queries times keys or with the group, and nothing is copied, repeated or widened."""

import sys

import pytest

from child import output_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20
# What is alive before the call, and its arguments: each would need tens of MiB more if anything was copied, repeated,
# widened or materialised.
CALLS = {
    "prompt": ("q, k = ones(1, 32, 4096, 128), ones(1, 8, 4096, 128)", "q, k, k, causal=True"),
    "prompt in double": ("q, k = ones(1, 8, 512, 64, 'f8'), ones(1, 2, 4096, 64, 'f8')", "q, k, k"),
    "prompt in half": ("q, k = ones(1, 8, 16, 64, 'f2'), ones(1, 2, 2**16, 64, 'f2')", "q, k, k"),
    "one head for many": ("q, k = ones(1, 64, 256, 64), ones(1, 1, 2048, 64)", "q, k, k"),
    "transposed": ("q, k = ones(1, 16, 8, 64).swapaxes(1, 2), ones(1, 2**16, 2, 64).swapaxes(1, 2)", "q, k, k"),
    "cache in half": ("q, k = ones(1, 8, 1, 128), ones(1, 2, 2**16, 128, 'f2')", "q, k, k"),
    "cache in half, transposed": ("q, k = ones(1, 8, 1, 128), ones(1, 2**16, 2, 128, 'f2').swapaxes(1, 2)", "q, k, k"),
    "cache in half for double": ("q, k = ones(1, 8, 4, 64, 'f8'), ones(1, 2, 2**16, 64, 'f2')", "q, k, k"),
    "quantised": (
        "q, k = ones(1, 8, 1, 64), gqa.Quantized(ones(1, 2, 2**17, 64, 'i1'), ones(1, 2, 2**17))",
        "q, k, k",
    ),
    "past and new": ("q, k = ones(1, 8, 4, 128), ones(1, 2, 2**15, 128)", "q, k, k, past_key=k, past_value=k"),
    "mask of stride 0": (
        "q, mask = ones(1, 8, 2048, 32), np.broadcast_to(ones(2048, dtype='?'), (1, 8, 2048, 2048))",
        "q, q, q, mask=mask",
    ),
    "given output": (
        "q, k, y = ones(1, 8, 4096, 128), ones(1, 2, 64, 128), ones(1, 4096, 8, 128).swapaxes(1, 2)",
        "q, k, k, out=y, sinks=ones(8)",
    ),
    "latent": ("q, k = ones(1, 64, 1, 576, 'f2'), ones(1, 1, 2**15, 576, 'f2')", "q, k, k[..., :512]"),
    "latent prompt": ("q, k = ones(1, 16, 128, 576), ones(1, 1, 512, 576)", "q, k, k[..., :512]"),
    "many splits": ("q, k = ones(1, 64, 1, 128), ones(1, 1, 2**16, 128, 'f2')", "q, k, k"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_peak_memory(name):
    """The peak of a fresh process, for the high-water mark of this one says nothing."""
    setup, arguments = CALLS[name]
    printed = output_of(
        f"""
        import re
        import numpy as np, gqa

        def ones(*shape, dtype="f4"):
            *shape, dtype = shape if isinstance(shape[-1], str) else (*shape, dtype)
            x = np.empty(shape, dtype)
            x.fill(1)  # touches every page, and needs nothing else
            return x

        def bytes_of(field):
            return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

        gqa.attention(*[ones(1, 2, 300, 64)] * 3, num_threads=2)  # starts the threads
        {setup}
        before = bytes_of("VmRSS")
        for threads in (1, 2):
            out, lse = gqa.attention({arguments}, return_lse=True, num_threads=threads)
            print(bytes_of("VmHWM") - before, out.nbytes + lse.nbytes)
            del out, lse
        """
    )
    for threads, line in enumerate(printed.splitlines(), 1):
        extra, result = map(int, line.split())
        if "out=" in arguments:
            result = 0
        excess = f"{(extra - result) / MIB:.1f} MiB with {threads} threads"
        assert extra <= 8 * MIB * threads + 8 * MIB + result, excess
