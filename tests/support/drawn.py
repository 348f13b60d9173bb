"""What hypothesis draws: calls of attention of any sizes, and options that fit them."""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from axes import DTYPES

few = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

dtypes = st.sampled_from(sorted(DTYPES)).map(DTYPES.get)
groups = st.integers(1, 6)
lengths = st.one_of(st.integers(1, 40), st.sampled_from([95, 96, 97, 191, 193, 255, 257, 300]))


@st.composite
def calls(draw, dtype=dtypes, keys=lengths):
    """(q, k, v) of drawn sizes."""
    batch, kv_heads, head_dim, v_head_dim = (draw(st.integers(1, n)) for n in (3, 3, 40, 40))
    heads, queries, tokens = kv_heads * draw(groups), draw(st.integers(1, 40)), draw(keys)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = ((heads, queries, head_dim), (kv_heads, tokens, head_dim), (kv_heads, tokens, v_head_dim))
    element = draw(dtype)
    return tuple(rng.standard_normal((batch, *shape)).astype(element) for shape in shapes)


@st.composite
def options(draw, q, k):
    """Any options that fit q and k."""
    batch, heads, queries = q.shape[:3]
    keys = k.shape[2]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bound = st.one_of(st.none(), st.integers(0, keys + 2))
    mask_shape = [draw(st.sampled_from([1, n])) for n in (batch, heads, queries, keys)]
    choices = {
        "causal": st.booleans(),
        "query_offset": st.integers(-queries, keys + 2),
        "window": st.tuples(bound, bound),
        "kv_lengths": st.lists(st.integers(0, keys), min_size=batch, max_size=batch),
        "scale": st.floats(-0.3, 0.3),
        "softcap": st.floats(0.5, 30),
        "sinks": st.just(rng.standard_normal(heads).astype(np.float32)),
        "mask": st.sampled_from([rng.random(mask_shape) < 0.7, rng.standard_normal(mask_shape).astype(np.float32)]),
    }
    names = draw(st.sets(st.sampled_from(sorted(choices))))
    return {name: draw(choices[name]) for name in sorted(names)}
