"""Pages of a pool: two sequences share those of a prompt, and each has the last page to itself."""

import matplotlib.pyplot as plt
import numpy as np

import gqa

cache = gqa.PagedKVCache(num_pages=8, page_size=4, kv_heads=1, head_dim=1)
one = cache.add()
cache.append([one], np.zeros((10, 1, 1)), np.zeros((10, 1, 1)), [10])
two = cache.fork(one)
cache.append([two], np.zeros((3, 1, 1)), np.zeros((3, 1, 1)), [3])

colours = {one: "#4477aa", two: "#ee6677"}
figure, axes = plt.subplots(figsize=(7, 2))
for page in range(8):
    for slot in range(4):
        owners = [id_ for id_, table in cache.block_tables.items() if page in table]
        filled = [id_ for id_ in owners if slot < cache.lengths[id_] - 4 * list(cache.block_tables[id_]).index(page)]
        colour = "#dddddd" if not filled else "#aa66aa" if len(filled) > 1 else colours[filled[0]]
        axes.add_patch(plt.Rectangle((page + slot * 0.22, 0), 0.2, 0.5, color=colour))
    axes.text(page + 0.43, -0.2, f"page {page}", ha="center", fontsize=8)
for x, (text, colour) in enumerate(
    {"shared": "#aa66aa", "one": "#4477aa", "two": "#ee6677", "free": "#dddddd"}.items()
):
    axes.add_patch(plt.Rectangle((x * 1.4, 0.8), 0.2, 0.25, color=colour))
    axes.text(x * 1.4 + 0.3, 0.92, text, va="center", fontsize=8)
axes.set(xlim=(-0.1, 8), ylim=(-0.4, 1.2))
axes.axis("off")
figure.tight_layout()
