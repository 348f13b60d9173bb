"""The two ways from a computation of JAX into the core."""

import pytest


@pytest.fixture(params=["XLA calls the core", "XLA calls Python"])
def door(request, monkeypatch):
    from gqa.jax import custom_calls

    if request.param == "XLA calls Python":
        pytest.importorskip("jax.experimental.buffer_callback", reason="this JAX hands Python no buffers")
        monkeypatch.setattr(custom_calls, "is_target", lambda name: False)
    elif not custom_calls.is_target("gqa_attention"):
        pytest.skip("built without the headers of this jaxlib")
    return request.param
