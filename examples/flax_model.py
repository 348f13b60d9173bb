"""A small causal language model of flax nnx whose attention is gqa's: it learns to repeat what it has read.

    python examples/flax_model.py                      # attention by gqa
    python examples/flax_model.py --attention flax     # by flax itself
    python examples/flax_model.py --steps 5 --tokens 512

Each sequence is random tokens, and then the same tokens again: only attention can know what comes next.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import gqa.nn

VOCABULARY = 64
FUNCTIONS = {"gqa": gqa.nn.attention_fn, "flax": nnx.dot_product_attention}


class Block(nnx.Module):
    """Attention and a feed-forward layer, each with a norm before and the input added after."""

    def __init__(self, width: int, heads: int, attention_fn: Any, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(
            heads, width, num_kv_heads=heads // 2, decode=False, attention_fn=attention_fn, rngs=rngs
        )
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, tokens, width) -> the same."""
        x = x + self.attention(self.norms[0](x), is_causal=True)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Model(nnx.Module):
    """Token and position embeddings, blocks, logits."""

    def __init__(self, tokens: int, width: int, heads: int, layers: int, attention_fn: Any, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Embed(tokens, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, attention_fn, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens (batch, tokens) -> logits of the tokens that follow (batch, tokens, vocabulary)."""
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.embedding.attend(self.norm(x))


def loss_of(model: Model, tokens: jax.Array) -> jax.Array:
    """Mean cross entropy of the second halves."""
    half = tokens.shape[1] // 2
    logits = model(tokens)[:, half - 1 : -1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, half:]).mean()


@nnx.jit
def step(model: Model, optimizer: nnx.Optimizer[Any], tokens: jax.Array) -> jax.Array:
    """One step of training; the loss before it."""
    loss, gradients = nnx.value_and_grad(loss_of)(model, tokens)
    optimizer.update(model, gradients)
    return loss


def main() -> None:
    """Train, and print losses and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=FUNCTIONS, default="gqa")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    a = parser.parse_args()

    model = Model(a.tokens, a.width, a.heads, a.layers, FUNCTIONS[a.attention], nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    times = []
    for i in range(a.steps):
        half = rng.integers(0, VOCABULARY, (a.batch, a.tokens // 2))
        start = time.perf_counter()
        loss = float(step(model, optimizer, jnp.asarray(np.concatenate([half, half], axis=1))))
        times.append(time.perf_counter() - start)
        if i % max(1, a.steps // 10) == 0 or i == a.steps - 1:
            print(f"step {i:4}: loss {loss:.4f}")
    forward = nnx.jit(lambda model, tokens: model(tokens))
    tokens = jnp.asarray(np.concatenate([half, half], axis=1))
    forward(model, tokens).block_until_ready()
    start = time.perf_counter()
    forward(model, tokens).block_until_ready()
    print(f"attention by {a.attention}: {np.median(times[1:] or times) * 1e3:.1f} ms a step, "
          f"{(time.perf_counter() - start) * 1e3:.1f} ms forward")  # fmt: skip


if __name__ == "__main__":
    main()
