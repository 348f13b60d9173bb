"""A call of the extension itself, past the checks in Python."""

import numpy as np

from gqa import _core

NAMES = ("q", "k", "v", "past_key", "past_value", "mask", "causal", "query_offset", "window", "kv_lengths", "scale",
         "softcap", "sinks", "layout", "out", "return_lse", "num_threads")  # fmt: skip


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


GOOD = dict.fromkeys(NAMES) | {
    "q": zeros(2, 4, 3, 8), "k": zeros(2, 2, 6, 8), "v": zeros(2, 2, 6, 5), "causal": False, "softcap": 0.0,
    "layout": "bhsd", "return_lse": False,
}  # fmt: skip


def attention(**change):
    arguments = GOOD | change
    assert len(arguments) == len(NAMES)
    return _core.attention(*arguments.values())
