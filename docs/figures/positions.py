"""Which keys a causal query sees, by where the queries stand among the keys."""

import matplotlib.pyplot as plt
import numpy as np

import gqa

KEYS, QUERIES = 10, 4
CASES = {
    "causal": {"causal": True},
    "causal, query_offset=0": {"causal": True, "query_offset": 0},
    "window=(2, 0)": {"window": (2, 0)},
    "kv_lengths=[7], causal": {"causal": True, "kv_lengths": [7]},
}

q, k = np.ones((1, 1, QUERIES, 4), np.float32), np.ones((1, 1, KEYS, 4), np.float32)
identity = np.eye(KEYS, dtype=np.float32)[None, None]
figure, axes = plt.subplots(1, len(CASES), figsize=(8, 1.6))
for axis, (name, options) in zip(axes, CASES.items()):
    axis.imshow(gqa.attention(q, k, identity, **options)[0, 0] > 0, cmap="Blues", vmin=0, vmax=1.4)
    axis.set_title(name, fontsize=8)
    axis.set(xlabel="key", xticks=range(0, KEYS, 3), yticks=range(QUERIES))
axes[0].set_ylabel("query")
figure.tight_layout()
