"""Whole models of transformers on gqa and on what transformers offers: prompts, and steps of decoding.

python bench/models.py --dtype float32 --threads 1 [--prompt 2048] [--past 4096 16384] [--intermediate 8192]

Times are medians of rounds in which the contestants take turns in one process, also given as multiples of the last's.
"no attention" does all but attention: what would be left if that took no time. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

import gqa.transformers

Contestant = tuple[str, str, Callable[[Any, int], Any]]


def dynamic(config: Any, _: int) -> Any:
    return transformers.DynamicCache(config=config)


def static(config: Any, tokens: int) -> Any:
    return transformers.StaticCache(config=config, max_cache_len=tokens)


def ours(config: Any, tokens: int, dtype: str | None = None) -> Any:
    return gqa.transformers.KVCache(config, capacity=tokens, dtype=dtype)


def no_attention(module: Any, query: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    """What a layer calls for its attention: its queries, (batch, tokens, heads, head_dim), as they are."""
    return query.transpose(1, 2).contiguous(), None


PROMPTS: list[Contestant] = [
    ("sdpa", "sdpa", dynamic),
    ("gqa", "gqa", dynamic),
    ("no attention, KVCache", "none", ours),
    ("gqa, KVCache", "gqa", ours),
]
STEPS: list[Contestant] = [
    ("sdpa, DynamicCache", "sdpa", dynamic),
    ("sdpa, StaticCache", "sdpa", static),
    ("gqa, DynamicCache", "gqa", dynamic),
    ("gqa, StaticCache", "gqa", static),
    ("no attention, KVCache", "none", ours),
    ("gqa, KVCache int8", "gqa", lambda config, tokens: ours(config, tokens, "int8")),
    ("gqa, KVCache", "gqa", ours),
]


def model_of(arguments: argparse.Namespace) -> Any:
    """Layers of the sizes of Llama 3.2 1B, with few words."""
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=2048, intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=2**17, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(getattr(torch, arguments.dtype)).eval()


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median time of each, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(x) for name, x in times.items()}


def prompts(model: Any, length: int, rounds: int) -> dict[str, float]:
    tokens = torch.arange(length)[None] % 256

    def call(implementation: str, cache: Callable[[Any, int], Any]) -> Callable[[], Any]:
        def run() -> None:
            model.set_attn_implementation(implementation)
            model(tokens, past_key_values=cache(model.config, length), logits_to_keep=1)

        return run

    return take_turns({name: call(implementation, cache) for name, implementation, cache in PROMPTS}, rounds)


def steps(model: Any, past: int, rounds: int) -> dict[str, float]:
    """One token after `past` others, which are random numbers."""
    config, dtype = model.config, model.dtype
    k, v = torch.randn(2, 1, config.num_key_value_heads, past, config.head_dim, dtype=dtype)
    token = torch.ones(1, 1, dtype=torch.int64)

    def call(implementation: str, make: Callable[[Any, int], Any]) -> Callable[[], Any]:
        cache = make(config, past + 2 * rounds + 64)
        for layer in range(config.num_hidden_layers):
            cache.update(k, v, layer)

        def run() -> None:
            model.set_attn_implementation(implementation)
            model(token, past_key_values=cache)

        return run

    return take_turns({name: call(implementation, make) for name, implementation, make in STEPS}, rounds)


def report(title: str, times: dict[str, float]) -> None:
    last = list(times.values())[-1]
    print(title)
    for name, seconds in times.items():
        print(f"  {name:21} {seconds * 1e3:9.2f} ms  {seconds / last:5.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--past", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gqa.transformers.register()
    transformers.AttentionInterface.register("none", no_attention)
    transformers.AttentionMaskInterface.register("none", lambda *_, **__: None)
    model = model_of(arguments)
    what = f"{arguments.layers} layers, {arguments.dtype}, {arguments.threads} threads"
    with torch.no_grad():
        if arguments.prompt:
            report(f"prompt of {arguments.prompt}, {what}", prompts(model, arguments.prompt, arguments.rounds))
        for past in arguments.past:
            report(f"a token after {past}, {what}", steps(model, past, 4 * arguments.rounds))


if __name__ == "__main__":
    main()
