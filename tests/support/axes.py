"""Axes that many tests run over: sizes, element types."""

import ml_dtypes
import numpy as np

# (queries, keys) that between them run every loop, with groups of two heads: channels in the lanes over one block, over
# several (of float64) and over several splits; rows in the lanes over one block, over several, and in several tiles.
SIZES = {
    "decode": (1, 40), "few": (3, 300), "split": (2, 1700), "rows": (12, 50), "blocks": (15, 290), "tiles": (40, 200),
}  # fmt: skip
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
