"""A call of the extension itself, past the checks in Python."""

import numpy as np

from gqa import _core
from gqa.options import Options

TENSORS = ("q", "k", "v", "past_key", "past_value")
NAMES = (*TENSORS, "query_offset", "kv_lengths", *Options._fields)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


GOOD = dict.fromkeys(NAMES) | {
    "q": zeros(2, 4, 3, 8), "k": zeros(2, 2, 6, 8), "v": zeros(2, 2, 6, 5),
} | Options()._asdict()  # fmt: skip


def attention(**change):
    arguments = GOOD | change
    assert len(arguments) == len(NAMES)
    options = Options(**{name: arguments[name] for name in Options._fields})
    tensors = tuple(arguments[name] for name in TENSORS)
    return _core.attention(tensors, arguments["query_offset"], arguments["kv_lengths"], options)
