"""A character model of two layers, trained in about a minute with NumPy and gqa alone.

    python examples/character_model.py                           # learns to write pages like this project's own
    python examples/character_model.py --text book.txt --seconds 600
    python examples/character_model.py --plot loss.png           # needs matplotlib

Each layer is `gqa.nn.MultiHeadAttention` with grouped heads and a feed-forward layer. Everything that is trained has a
method `vjp`: its result, and a pullback, which turns the gradient by the result into those by input and parameters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import gqa.nn

Array = np.ndarray
Gradients = dict[str, Array]  # by the names of parameters
Pullback = Callable[[Array], tuple[Array, Gradients]]

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "bench/README.md", "docs/*.md", "docs/*/*.md")


class Norm:
    """Root mean square normalisation with a learned scale."""

    def __init__(self, width: int) -> None:
        self.scale = np.ones(width, np.float32)

    def parameters(self) -> Gradients:
        return {"scale": self.scale}

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        factor = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
        normal = x * factor

        def pullback(dy: Array) -> tuple[Array, Gradients]:
            dx = dy * self.scale
            dx = factor * (dx - normal * (dx * normal).mean(-1, keepdims=True))
            return dx, {"scale": (dy * normal).reshape(-1, len(self.scale)).sum(0)}

        return normal * self.scale, pullback


class FeedForward:
    """x -> max(0, x @ up) ** 2 @ down."""

    def __init__(self, width: int, rng: np.random.Generator) -> None:
        self.up = (rng.standard_normal((width, 4 * width)) / np.sqrt(width)).astype(np.float32)
        self.down = np.zeros((4 * width, width), np.float32)

    def parameters(self) -> Gradients:
        return {"up": self.up, "down": self.down}

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        rows = x.reshape(-1, x.shape[-1])
        positive = np.maximum(rows @ self.up, 0)
        hidden = np.square(positive)

        def pullback(dy: Array) -> tuple[Array, Gradients]:
            dy = dy.reshape(rows.shape)
            before = 2 * positive * (dy @ self.down.T)
            return (before @ self.up.T).reshape(x.shape), {"up": rows.T @ before, "down": hidden.T @ dy}

        return (hidden @ self.down).reshape(x.shape), pullback


class Attention:
    """Causal attention by gqa's layer: four query heads to each head of keys and values."""

    def __init__(self, width: int, heads: int, rng: np.random.Generator) -> None:
        self.layer = gqa.nn.MultiHeadAttention(
            heads, width, num_kv_heads=heads // 4, use_bias=False, normalize_qk=True, rng=rng
        )
        self.layer.out.kernel[:] = 0  # so that each layer begins as the identity

    def parameters(self) -> Gradients:
        layer = self.layer
        kernels = {name: getattr(layer, name).kernel for name in ("query", "key", "value", "out")}
        return kernels | {name: getattr(layer, name).scale for name in ("query_ln", "key_ln")}

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, layer_pullback = self.layer.vjp(x, is_causal=True)

        def pullback(dy: Array) -> tuple[Array, Gradients]:
            gradients = layer_pullback(dy)
            parameters = gradients.parameters.items()  # one array in each part, as there are no biases
            return gradients.inputs_q, {name: next(iter(part.values())) for name, part in parameters}

        return y, pullback


class Model:
    """Embeddings of characters and positions, blocks, and logits by the embedding of characters."""

    def __init__(self, characters: int, tokens: int, width: int, heads: int, layers: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.embedding = (0.05 * rng.standard_normal((characters, width))).astype(np.float32)
        self.positions = (0.05 * rng.standard_normal((tokens, width))).astype(np.float32)
        self.parts: list[tuple[Norm, Attention | FeedForward]] = []
        for _ in range(layers):
            self.parts += [(Norm(width), Attention(width, heads, rng)), (Norm(width), FeedForward(width, rng))]
        self.norm = Norm(width)

    def parameters(self) -> Gradients:
        """All that is trained, by name: the arrays themselves, to be changed in place."""
        found = {"embedding": self.embedding, "positions": self.positions}
        for i, (norm, part) in enumerate(self.parts):
            for x in (norm, part):
                found |= {f"{i}.{type(x).__name__}.{name}": p for name, p in x.parameters().items()}
        return found | {"norm.scale": self.norm.scale}

    def loss(self, tokens: Array) -> tuple[float, Callable[[], Gradients]]:
        """Mean cross entropy of each of tokens (batch, length) given those before it, and what gives its gradients."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.embedding[inputs] + self.positions[: inputs.shape[1]]
        pullbacks = []
        for norm, part in self.parts:
            normal, of_norm = norm.vjp(x)
            y, of_part = part.vjp(normal)
            x = x + y
            pullbacks.append((of_norm, of_part))
        x, of_last_norm = self.norm.vjp(x)
        rows = x.reshape(-1, x.shape[-1])
        logits = rows @ self.embedding.T
        logits -= logits.max(-1, keepdims=True)
        sums = np.exp(logits).sum(-1)
        chosen = logits[np.arange(len(rows)), targets.ravel()]

        def gradients() -> Gradients:
            dlogits = np.exp(logits) / sums[:, None]
            dlogits[np.arange(len(rows)), targets.ravel()] -= 1
            dlogits /= len(rows)
            found = {"embedding": dlogits.T @ rows}
            dx, of_norm = of_last_norm((dlogits @ self.embedding).reshape(x.shape))
            found["norm.scale"] = of_norm["scale"]
            for i in reversed(range(len(self.parts))):
                dy = dx
                for part, pullback in zip(reversed(self.parts[i]), reversed(pullbacks[i])):
                    dy, of_part = pullback(dy)
                    found |= {f"{i}.{type(part).__name__}.{name}": g for name, g in of_part.items()}
                dx = dx + dy
            np.add.at(found["embedding"], inputs, dx)
            found["positions"] = np.zeros_like(self.positions)
            found["positions"][: inputs.shape[1]] = dx.sum(0)
            return found

        return float((np.log(sums) - chosen).mean()), gradients

    def write(self, start: Array, count: int, rng: np.random.Generator, temperature: float = 0.7) -> list[int]:
        """So many tokens after those of start (length,), token by token, with the caches of the layers."""
        tokens, width = [int(x) for x in start], self.embedding.shape[1]
        for _, part in self.parts:
            if isinstance(part, Attention):
                part.layer.init_cache((1, len(self.positions), width))
        for i in range(min(len(start) + count, len(self.positions)) - 1):
            x = (self.embedding[tokens[i]] + self.positions[i])[None, None]
            for norm, part in self.parts:
                normal, _ = norm.vjp(x)
                x = x + (part.layer(normal, decode=True) if isinstance(part, Attention) else part.vjp(normal)[0])
            if i == len(tokens) - 1:
                logits = (self.norm.vjp(x)[0][0, 0] @ self.embedding.T).astype(np.float64) / temperature
                weights = np.exp(logits - logits.max())
                tokens.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        return tokens


class Adam:
    """Adam (arXiv:1412.6980) on arrays by name, in place."""

    def __init__(self, parameters: Gradients) -> None:
        self.parameters, self.steps = parameters, 0
        self.means, self.squares = ({n: np.zeros_like(x) for n, x in parameters.items()} for _ in range(2))

    def step(self, gradients: Gradients, rate: float) -> None:
        self.steps += 1
        for name, x in self.parameters.items():
            mean, square, g = self.means[name], self.squares[name], gradients[name]
            mean += 0.1 * (g - mean)
            square += 0.01 * (g * g - square)
            corrected = np.sqrt(square / (1 - 0.99**self.steps)) + 1e-8
            x -= rate / (1 - 0.9**self.steps) * mean / corrected


def read(path: Path | None) -> str:
    """A file, or all pages of this project."""
    paths = [path] if path else [x for pattern in PAGES for x in sorted(ROOT.glob(pattern))]
    return "\n".join(x.read_text(encoding="utf-8") for x in paths)


def batch_of(text: Array, count: int, length: int, rng: np.random.Generator) -> Array:
    """(count, length + 1) characters from places of chance."""
    starts = rng.integers(0, len(text) - length, count)
    return text[starts[:, None] + np.arange(length + 1)]


def plot(losses: list[float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(losses, color="0.8")
    window = max(1, len(losses) // 50)
    axes.plot(np.convolve(losses, np.ones(window) / window, "valid"))
    axes.set(xlabel="step", ylabel="cross entropy of a character")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Train, print losses, write something, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="what to learn; default: the pages of this project")
    parser.add_argument("--seconds", type=float, default=60, help="how long to train; default: 60")
    parser.add_argument("--steps", type=int, help="how many steps to train, instead")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-3, help="of learning; falls to a tenth")
    parser.add_argument("--plot", type=Path, help="where to draw the loss (PNG, SVG or PDF)")
    a = parser.parse_args()

    text = read(a.text)
    characters = sorted(set(text))
    numbers = {c: i for i, c in enumerate(characters)}
    tokens = np.array([numbers[c] for c in text])
    known, unseen = np.split(tokens, [len(tokens) * 9 // 10])
    print(f"{len(text)} characters, {len(characters)} different ones")

    rng = np.random.default_rng(0)
    model = Model(len(characters), a.tokens, a.width, a.heads, a.layers)
    adam = Adam(model.parameters())
    print(f"{sum(x.size for x in adam.parameters.values())} parameters")
    losses: list[float] = []
    start = shown = time.monotonic()
    done = 0.0
    while done < 1:
        loss, gradients = model.loss(batch_of(known, a.batch, a.tokens, rng))
        adam.step(gradients(), a.rate * min(1, (len(losses) + 1) / 50) * (1 - 0.9 * done))
        losses.append(loss)
        now = time.monotonic()
        done = len(losses) / a.steps if a.steps else (now - start) / a.seconds
        if now - shown > 5 or done >= 1:
            shown = now
            held_out, _ = model.loss(batch_of(unseen, a.batch, a.tokens, np.random.default_rng(1)))
            print(
                f"step {len(losses):4}, {now - start:3.0f} s: loss {np.mean(losses[-20:]):.3f}, unseen {held_out:.3f}"
            )

    prompt = "gqa reads "
    prompt = prompt if set(prompt) <= set(characters) else text[:1]
    written = model.write(np.array([numbers[c] for c in prompt]), a.tokens, rng)
    print("---", "".join(characters[i] for i in written), sep="\n")
    if a.plot:
        plot(losses, a.plot)


if __name__ == "__main__":
    main()
