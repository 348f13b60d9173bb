"""The examples' score functions, made for given sizes."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np

from repository import ROOT

_SPEC = importlib.util.spec_from_file_location("score_functions_example", ROOT / "examples" / "score_functions.py")
recipes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = recipes
_SPEC.loader.exec_module(recipes)

# Each from the numbers of batch entries, heads and keys, and a generator.
RECIPES = {
    "alibi": lambda b, h, t, rng: {"score_mod": recipes.alibi(h)},
    "relative_bias": lambda b, h, t, rng: {"score_mod": recipes.relative_bias(_floats(rng, h, 33))},
    "t5_bias": lambda b, h, t, rng: {"score_mod": recipes.t5_bias(_floats(rng, h, 32))},
    "t5_bias causal": lambda b, h, t, rng: {"score_mod": recipes.t5_bias(_floats(rng, h, 16), bidirectional=False)},
    "soft_cap": lambda b, h, t, rng: {"score_mod": recipes.soft_cap(2.0)},
    "key_bias": lambda b, h, t, rng: {"score_mod": recipes.key_bias(_floats(rng, b, t))},
    "causal": lambda b, h, t, rng: {"mask_mod": recipes.causal},
    "sliding_window": lambda b, h, t, rng: {"mask_mod": recipes.sliding_window(17)},
    "dilated_window": lambda b, h, t, rng: {"mask_mod": recipes.dilated_window(9, 3)},
    "per_head_windows": lambda b, h, t, rng: {"mask_mod": recipes.per_head_windows(4 + 5 * np.arange(h))},
    "prefix_lm": lambda b, h, t, rng: {"mask_mod": recipes.prefix_lm(rng.integers(0, t + 1, b))},
    "documents": lambda b, h, t, rng: {"mask_mod": recipes.documents(np.sort(rng.integers(0, 6, t)))},
    "tree": lambda b, h, t, rng: {"mask_mod": recipes.tree(np.array([-1, 0, 0, 1, 1, 2, -1]), max(t - 7, 0))},
    "neighbourhood": lambda b, h, t, rng: {"mask_mod": recipes.neighbourhood(9, max(t // 9, 3), 3)},
    "tiles": lambda b, h, t, rng: {"mask_mod": recipes.tiles(9, 4)},
    "checkerboard": lambda b, h, t, rng: {"mask_mod": recipes.checkerboard},
    "both": lambda b, h, t, rng: {"score_mod": recipes.alibi(h), "mask_mod": recipes.sliding_window(30)},
}


def _floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def recipe(name, batch, heads, keys, rng):
    """score_mod and mask_mod of an example, as options."""
    return RECIPES[name](batch, heads, keys, rng)
