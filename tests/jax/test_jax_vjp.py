"""gqa.attention_vjp against jax.grad of attention by its definition, over some of the table of cases."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402

import cases  # noqa: E402
import differentiable  # noqa: E402
from gradient_cases import assert_gradients_close, gradients  # noqa: E402

# Each compiles anew.
CASES = [*cases.HEADS[1::3], cases.HEAD_DIMS[-5], cases.ROWS[-1], *cases.WITH_OPTIONS[2 : 4 * len(cases.OPTIONS) : 4]]
CASES += cases.WITH_OPTIONS[-2:]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case):
    x = differentiable.prepared(case)
    given = {n: y for n, y in x.tensors.items() if y is not None}
    absent = dict.fromkeys(x.tensors.keys() - given.keys())
    jax.config.update("jax_enable_x64", True)
    try:

        @jax.jit
        def gradients_of(tensors, allowed, dout):
            def loss(tensors):
                options = x.options | {"allowed": allowed}
                return (differentiable.attention(jnp, **tensors, **absent, **options) * dout).sum()

            return jax.grad(loss)(tensors)

        found = gradients_of(given, x.options["allowed"], np.ascontiguousarray(x.dout))
        expected = {f"d{n}": np.asarray(y) for n, y in found.items()}
    finally:
        jax.config.update("jax_enable_x64", False)
    actual = gradients(x.arguments, x.dout, mask_grad="mask" in given)
    assert_gradients_close(actual, expected, x.magnitudes)
