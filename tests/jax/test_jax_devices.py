"""gqa.jax on several devices of one process, as XLA_FLAGS makes them of one CPU."""

import pytest

from child import output_of

pytest.importorskip("jax", reason="JAX is not installed")

DEVICES = """
import jax, jax.numpy as jnp, numpy as np
import gqa, gqa.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("batch",))
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((4, heads, 5, 16), np.float32) for heads in (4, 2, 2))
lengths = np.array([5, 2, 3, 4], np.int32)
expected = gqa.attention(q, k, v, causal=True, kv_lengths=lengths)
def attend(q, k, v, lengths):
    return gqa.jax.attention(q, k, v, causal=True, kv_lengths=lengths)
arrays = [jax.device_put(x, NamedSharding(mesh, P("batch"))) for x in (q, k, v, lengths)]
"""
WAYS = {
    "eager": "result = attend(*arrays)",
    "jit": "result = jax.jit(attend)(*arrays)",
    "one of the devices": "result = jax.jit(attend)(*jax.device_put((q, k, v, lengths), jax.devices()[3]))",
    "shard_map": """
try:
    from jax import shard_map
except ImportError:
    from jax.experimental.shard_map import shard_map
result = jax.jit(shard_map(attend, mesh=mesh, in_specs=P("batch"), out_specs=P("batch")))(*arrays)
assert len(result.sharding.device_set) == 4
""",
}


@pytest.mark.parametrize("door", ["core", "Python"])
@pytest.mark.parametrize("way", WAYS)
def test_four_devices(way, door):
    if door == "Python":
        pytest.importorskip("jax.experimental.buffer_callback", reason="this JAX hands Python no buffers")
    chosen = "" if door == "core" else "gqa.jax.custom_calls.is_target = lambda name: False"
    flags = "--xla_force_host_platform_device_count=4"
    code = f"{DEVICES}\n{chosen}\n{WAYS[way]}\nprint(len(jax.devices()), (np.asarray(result) == expected).all())"
    assert output_of(code, XLA_FLAGS=flags) == "4 True"
