"""A complete Llama decoder in NumPy: RMSNorm, rotary embedding, grouped-query attention over a KV cache, SwiGLU.

    python llama.py                                        a small model with random weights
    python llama.py --layers 16 --hidden 2048 --heads 32 --kv-heads 8 --prompt-length 512
    python llama.py --folder Llama-3.2-1B --text "The sea"   config.json and *.safetensors as on the Hugging Face Hub
    mpiexec -n 2 python -m mpi4py llama.py --sharded         each process keeps a share of the caches' tokens

The first needs nothing but numpy and gqa; reading weights needs `pip install safetensors ml_dtypes`, and --text needs
`pip install tokenizers`; --sharded needs `pip install mpi4py mpich`. Weights are computed with in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gqa
import gqa.distributed

Cache = gqa.KVCache | gqa.distributed.ShardedKVCache


@dataclass(frozen=True)
class Config:
    """Sizes and constants, by their names in config.json."""

    vocab_size: int = 1000
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    eos_token_id: Any = ()

    @classmethod
    def read(cls, path: Path) -> Config:
        given = json.loads(path.read_text())
        if given.get("model_type") != "llama" or given.get("hidden_act", "silu") != "silu":
            raise ValueError(f"{path} has model_type {given.get('model_type')!r}, expected 'llama' with silu")
        # Newer configurations keep rope_theta and the scaling together in rope_parameters.
        rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
        given["rope_theta"] = given.get("rope_theta") or rope.get("rope_theta", 10000.0)
        given["rope_scaling"] = rope if "rope_type" in rope or "type" in rope else None
        given["head_dim"] = given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
        given["num_key_value_heads"] = given.get("num_key_value_heads") or given["num_attention_heads"]
        return cls(**{name: x for name, x in given.items() if name in cls.__dataclass_fields__})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model, by Hugging Face's name."""
        hidden, inner, vocabulary = self.hidden_size, self.intermediate_size, self.vocab_size
        heads, kv_heads = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
        for i in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (hidden,)
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": (vocabulary, hidden)}


class Llama:
    """weights: float32 arrays by Hugging Face's names, as `random_weights` and `read_weights` give them."""

    def __init__(self, config: Config, weights: dict[str, np.ndarray]) -> None:
        expected, given = config.shapes(), {name: x.shape for name, x in weights.items()}
        unused = {name for name in given if name.endswith("rotary_emb.inv_freq")} | {"lm_head.weight"} - set(expected)
        for name in sorted((set(expected) | set(given)) - unused):
            if given.get(name) != expected.get(name):
                raise ValueError(f"{name} has shape {given.get(name)}, but the configuration has {expected.get(name)}")
        self.config, self.weights = config, weights
        self.cos, self.sin = gqa.rotary_tables(
            config.max_position_embeddings, config.head_dim, base=config.rope_theta, scaling=config.rope_scaling
        )

    def new_caches(self, batch: int, capacity: int, dtype: str = "float32", comm: Any = None) -> list[Cache]:
        """A cache for each layer; the ranks of `comm`, if given, share its tokens, and must all make the same calls."""
        c = self.config
        kind = gqa.KVCache if comm is None else partial(gqa.distributed.ShardedKVCache, comm)
        return [
            kind(batch, c.num_key_value_heads, capacity, c.head_dim, dtype=dtype, layout="bshd")
            for _ in range(c.num_hidden_layers)
        ]

    def __call__(self, tokens: np.ndarray, caches: list[Cache]) -> np.ndarray:
        """Append tokens (B, S) to the caches; returns their final hidden states (B, S, hidden_size)."""
        position = int(caches[0].lengths[0])  # of the first token, the same in all sequences
        x = self.weights["model.embed_tokens.weight"][tokens]
        for i, cache in enumerate(caches):
            x = x + self.attend(f"model.layers.{i}", self.norm(f"model.layers.{i}.input_layernorm", x), cache, position)
            x = x + self.feed_forward(
                f"model.layers.{i}.mlp", self.norm(f"model.layers.{i}.post_attention_layernorm", x)
            )
        return self.norm("model.norm", x)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Scores of the next token, (..., hidden_size) to (..., vocab_size)."""
        return self.linear("model.embed_tokens" if self.config.tie_word_embeddings else "lm_head", hidden)

    def attend(self, name: str, x: np.ndarray, cache: Cache, position: int) -> np.ndarray:
        q, k, v = (
            self.linear(f"{name}.self_attn.{part}_proj", x).reshape(*x.shape[:2], -1, self.config.head_dim)
            for part in "qkv"
        )
        q, k = (gqa.rotary(part, self.cos, self.sin, positions=position, layout="bshd") for part in (q, k))
        attended = cache.attend(q, k, v)  # causal; q has more heads than k and v
        return self.linear(f"{name}.self_attn.o_proj", attended.reshape(*x.shape[:2], -1))

    def feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        gate = self.linear(f"{name}.gate_proj", x)
        gate *= 0.5 + 0.5 * np.tanh(0.5 * gate)  # silu: gate / (1 + exp(-gate)), without overflow
        gate *= self.linear(f"{name}.up_proj", x)
        return self.linear(f"{name}.down_proj", gate)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + np.float32(self.config.rms_norm_eps)) * self.weights[f"{name}.weight"]


def random_weights(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def weight(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    return {name: weight(shape) for name, shape in config.shapes().items()}


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder's *.safetensors files, as float32."""
    try:
        import ml_dtypes  # noqa: F401  (makes bfloat16 known to NumPy)
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"reading weights needs the package {error.name}: pip install safetensors ml_dtypes"
        ) from error
    weights: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            weights |= {name: tensors.get_tensor(name).astype(np.float32) for name in tensors.keys()}  # noqa: SIM118
    return weights


def sample(
    logits: np.ndarray, rng: np.random.Generator, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """Next tokens (B,) from logits (B, vocab_size): the likeliest at temperature 0, otherwise drawn.

    top_k > 0 leaves the k likeliest tokens, top_p < 1 the fewest likeliest whose probabilities add up to it.
    """
    if temperature == 0:
        return np.argmax(logits, axis=-1)
    order = np.argsort(-logits, axis=-1)[:, : top_k or None]
    scores = np.take_along_axis(logits, order, axis=-1).astype(np.float64) / temperature
    p = np.exp(scores - scores[:, :1])
    p /= p.sum(axis=-1, keepdims=True)
    scores[np.cumsum(p, axis=-1) - p >= top_p] = -np.inf
    drawn = np.argmax(scores + rng.gumbel(size=scores.shape), axis=-1)  # as probable as the softmax of the scores
    return np.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]


def generate(
    model: Llama, prompt: np.ndarray, count: int, *, seed: int = 0, cache_dtype: str = "float32", comm: Any = None,
    **sampling: Any,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield `count` tokens (B,), one after another, behind a prompt (B, S); `sampling` as for `sample`."""
    rng = np.random.default_rng(seed)
    caches = model.new_caches(len(prompt), prompt.shape[1] + count, cache_dtype, comm)
    tokens = prompt
    for _ in range(count):
        hidden = model(tokens, caches)  # the whole prompt at first, then one token at a time
        token = sample(model.logits(hidden[:, -1]), rng, **sampling)
        yield token
        tokens = token[:, None]


def with_progress(tokens: Iterable[np.ndarray], prompt_length: int, count: int) -> Iterator[np.ndarray]:
    """Pass tokens on and show how fast they come, on stderr."""
    start = first = time.perf_counter()
    for n, token in enumerate(tokens, 1):
        now = time.perf_counter()
        if n == 1:
            first = now
            print(f"prompt of {prompt_length} tokens: {prompt_length / (now - start):.0f} tokens/s", file=sys.stderr)
        rate = f", {(n - 1) / (now - first):.1f} tokens/s" if n > 1 else ""
        bar = "#" * (30 * n // count)
        print(f"\r[{bar:30}] {n}/{count}{rate}", end="", file=sys.stderr, flush=True)
        yield token
    print(file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="config.json and *.safetensors; default: random weights")
    for name, default in (("layers", 4), ("hidden", 256), ("heads", 8), ("kv-heads", 2), ("vocab", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"of a random model, default {default}")
    parser.add_argument("--text", help="prompt, for a folder with tokenizer.json")
    parser.add_argument("--prompt-length", type=int, default=64, help="of a prompt of random tokens, default 64")
    parser.add_argument("--tokens", type=int, default=100, help="how many to generate, default 100")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default: always the likeliest token")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dtype", default="float32", help="float32, float16, bfloat16 or int8")
    parser.add_argument("--sharded", action="store_true", help="deal the caches out to the processes of mpiexec")
    args = parser.parse_args()
    if args.text is not None and args.folder is None:
        parser.error("--text needs --folder")

    if args.folder:
        config, weights = Config.read(args.folder / "config.json"), read_weights(args.folder)
    else:
        config = Config(
            vocab_size=args.vocab, hidden_size=args.hidden, intermediate_size=args.hidden * 11 // 4,
            num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
            head_dim=args.hidden // args.heads,
        )  # fmt: skip
        weights = random_weights(config, args.seed)
    tokenizer = None
    if args.text is not None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
        prompt = np.array([tokenizer.encode(args.text).ids])
    else:
        prompt = np.random.default_rng(args.seed).integers(0, config.vocab_size, (1, args.prompt_length))

    comm = None
    if args.sharded:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    tokens = generate(
        Llama(config, weights), prompt, args.tokens, seed=args.seed, cache_dtype=args.cache_dtype, comm=comm, **sampling
    )
    generated = []
    speaks = comm is None or comm.Get_rank() == 0  # every process computes the same
    for token in with_progress(tokens, prompt.shape[1], args.tokens) if speaks else tokens:
        generated.append(int(token[0]))
        if generated[-1] in np.atleast_1d(config.eos_token_id):
            break
    if not speaks:
        return
    print(tokenizer.decode(generated) if tokenizer else " ".join(map(str, generated)))


if __name__ == "__main__":
    main()
