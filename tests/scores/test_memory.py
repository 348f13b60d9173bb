"""Score functions take no memory of the size of the scores."""

from __future__ import annotations

from pathlib import Path

import pytest

import child

RECIPES = Path(__file__).parents[2] / "examples" / "score_functions.py"

FUNCTIONS = {
    "alibi and causal": "score_mod=recipes.alibi(4), mask_mod=recipes.causal",
    "a table, and documents": "score_mod=recipes.relative_bias(table), mask_mod=recipes.documents(ids)",
    "soft cap and a window": "score_mod=recipes.soft_cap(20.0), mask_mod=recipes.sliding_window(1000)",
}


@pytest.mark.parametrize("functions", FUNCTIONS)
@pytest.mark.parametrize("queries", [8192, 1])
def test_at_most_a_mebibyte_beside_a_plain_call(functions, queries):
    """8192 x 8192 scores of 4 heads would take 1 GiB."""
    code = f"""
        import importlib.util, pathlib, resource
        import numpy as np
        import gqa
        spec = importlib.util.spec_from_file_location("recipes", {str(RECIPES)!r})
        recipes = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipes)
        table = np.zeros((4, 257), np.float32)
        ids = np.repeat(np.arange(16), 512)
        options = dict({FUNCTIONS[functions]}, num_threads=2)
        q = np.ones((1, 4, {queries}, 16), np.float32)
        k = v = np.ones((1, 2, 8192, 16), np.float32)
        out = np.empty_like(q)
        gqa.attention(q[:, :, :64], k[:, :, :64], v[:, :, :64], **options)
        gqa.attention(q, k, v, out=out, num_threads=2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gqa.attention(q, k, v, out=out, **options)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    assert int(child.output_of(code)) <= 1024
