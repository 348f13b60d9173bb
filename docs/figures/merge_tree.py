"""Splits at fixed multiples of keys, merged in the order of a balanced tree; a shard is a subtree."""

import matplotlib.pyplot as plt

import gqa

LEAVES = 8
SHARD = range(4, 6)

figure, axes = plt.subplots(figsize=(7, 2.8))
for i in range(LEAVES):
    colour = "#ee6677" if i in SHARD else "#4477aa"
    axes.add_patch(plt.Rectangle((i + 0.05, -0.25), 0.9, 0.5, color=colour))
    axes.text(i + 0.5, 0, f"split {i}", ha="center", va="center", color="white", fontsize=8)
    axes.text(i, -0.45, f"{i * gqa.SPLIT_KEYS:,}", ha="center", va="center", fontsize=7)
width, level = 1, 0
while width < LEAVES:
    for first in range(0, LEAVES, 2 * width):
        top = level + 1
        for child in (first + width / 2, first + 3 * width / 2):
            axes.plot([child, first + width], [level + (0.25 if level == 0 else 0), top], color="#555555", linewidth=1)
        inside = first in SHARD and first + 2 * width - 1 in SHARD
        axes.plot(first + width, top, "o", color="#ee6677" if inside else "#4477aa", markersize=7)
    width, level = 2 * width, level + 1
axes.text(-0.1, -0.45, "key", ha="right", va="center", fontsize=7)
axes.set(xlim=(-0.5, LEAVES + 0.2), ylim=(-0.7, level + 0.3))
axes.axis("off")
figure.tight_layout()
