"""Query heads, in groups, over the heads of keys and values that they share. README shows it as heads.svg."""

import matplotlib.pyplot as plt

QUERY_HEADS, KV_HEADS = 8, 2
COLOURS = ("#4477aa", "#ee6677")

figure, axes = plt.subplots(figsize=(7, 2.6))
group = QUERY_HEADS // KV_HEADS
for h in range(QUERY_HEADS):
    colour = COLOURS[h // group]
    axes.add_patch(plt.Rectangle((h, 2), 0.8, 0.7, color=colour, alpha=0.85))
    axes.text(h + 0.4, 2.35, f"q{h}", ha="center", va="center", color="white")
    below = h // group * group + (group - 0.2) / 2
    axes.plot([h + 0.4, below], [2, 1.1], color=colour, linewidth=1)
for n in range(KV_HEADS):
    left = n * group + 0.6
    axes.add_patch(plt.Rectangle((left, 0.4), group - 1.4, 0.7, color=COLOURS[n]))
    axes.text(left + (group - 1.4) / 2, 0.75, f"k{n}, v{n}", ha="center", va="center", color="white")
axes.text(-0.3, 2.35, "query heads", ha="right", va="center")
axes.text(-0.3, 0.75, "KV heads", ha="right", va="center")
axes.set(xlim=(-2, QUERY_HEADS), ylim=(0.2, 2.9))
axes.axis("off")
figure.tight_layout()
