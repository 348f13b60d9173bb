"""Nothing grows with queries times keys or with the group, and nothing is copied, repeated or widened."""

import sys

import pytest

from child import output_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20
# What is alive before the call, and the call; each would need tens of MiB more if anything was copied or materialised.
CALLS = {
    "prompt": ("q, k, v = ones(1, 8, 1024, 64), ones(1, 2, 4096, 64), ones(1, 2, 4096, 64)", "gqa.attention(q, k, v, **options)"),
    "prompt in double": (
        "q, k, v = ones(1, 8, 512, 64, 'f8'), ones(1, 2, 4096, 64, 'f8'), ones(1, 2, 4096, 64, 'f8')",
        "gqa.attention(q, k, v, **options)",
    ),
    "one head for many": ("q, k, v = ones(1, 64, 256, 64), ones(1, 1, 2048, 64), ones(1, 1, 2048, 64)", "gqa.attention(q, k, v, **options)"),
    "transposed": (
        "q, k, v = (ones(1, n, h, 64).swapaxes(1, 2) for n, h in ((1024, 8), (32768, 2), (32768, 2)))",
        "gqa.attention(q[:, :, :64], k, v, **options)",
    ),
    "half a cache": ("q, k, v = ones(1, 8, 1, 128), ones(1, 2, 2**16, 128, 'f2'), ones(1, 2, 2**16, 128, 'f2')", "gqa.attention(q, k, v, **options)"),
    "half a prompt": (
        "q, k, v = ones(1, 8, 256, 64, 'f2'), ones(1, 2, 2**15, 64, 'f2'), ones(1, 2, 2**15, 64, 'f2')",
        "gqa.attention(q[:, :, :32], k, v, **options)",
    ),
    "half a cache for double": (
        "q, k, v = ones(1, 8, 4, 64, 'f8'), ones(1, 2, 2**16, 64, 'f2'), ones(1, 2, 2**16, 64, 'f2')",
        "gqa.attention(q, k, v, **options)",
    ),
    "quantised": (
        "q, k = ones(1, 8, 1, 128), gqa.Quantized(ones(1, 2, 2**16, 128, 'i1'), ones(2**16, 2).T[None])",
        "gqa.attention(q, k, k, **options)",
    ),
    "past and new": (
        "q, k, past = ones(1, 8, 4, 128), ones(1, 2, 2**15, 128), ones(1, 2, 2**15, 128)",
        "gqa.attention(q, k, k, past_key=past, past_value=past, **options)",
    ),
    "masks of stride 0": (
        "q, k, mask = ones(1, 8, 2048, 32), ones(1, 8, 2048, 32), np.broadcast_to(ones(2048, dtype='?'), (1, 8, 2048, 2048))",
        "gqa.attention(q, k, k, mask=mask, **options)",
    ),
    "sinks and a given output": (
        "q, k, out = ones(1, 8, 4096, 128), ones(1, 2, 64, 128), ones(1, 4096, 8, 128).swapaxes(1, 2)",
        "gqa.attention(q, k, k, out=out, sinks=ones(8), **options)",
    ),
    "latent": (
        "k = ones(1, 1, 2**14, 576, 'f2'); q = ones(1, 64, 1, 576, 'f2')",
        "gqa.attention(q, k, k[..., :512], **options)",
    ),
    "latent prompt": ("k = ones(1, 1, 512, 576); q = ones(1, 16, 128, 576)", "gqa.attention(q, k, k[..., :512], **options)"),
    "many splits": ("q, k = ones(1, 64, 1, 128), ones(1, 1, 2**16, 128, 'f2')", "gqa.attention(q, k, k, **options)"),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", CALLS)
def test_peak_memory(name, threads):
    setup, call = CALLS[name]
    extra, result = map(
        int,
        output_of(
            f"""
            import re
            import numpy as np, gqa

            def ones(*shape, dtype="f4"):
                *shape, dtype = shape if isinstance(shape[-1], str) else (*shape, dtype)
                x = np.empty(shape, dtype)
                x.fill(1)
                return x

            def kib(field):
                return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])

            options = dict(num_threads={threads}, return_lse=True)
            gqa.attention(*[ones(1, 2, 300, 64)] * 3, **options)  # starts the threads
            {setup}
            before = kib("VmRSS")
            out, lse = {call}
            given = "out=" in {call!r}
            print((kib("VmHWM") - before) * 1024, (0 if given else out.nbytes) + lse.nbytes)
            """,
            OMP_NUM_THREADS=str(threads),
        ).split(),
    )
    assert extra <= 8 * MIB * threads + 8 * MIB + result, f"{(extra - result) / MIB:.1f} MiB"
