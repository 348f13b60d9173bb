"""The cache of a whole model."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from gqa.caches.storage import storage_dtype
from gqa.shapes import check_int
from gqa.torch.tensors import named_dtype
from gqa.transformers.cache_layers import CacheLayer


class KVCache(Cache):  # type: ignore[misc]
    """A cache for models of transformers whose layers are gqa caches: ``past_key_values=KVCache(model.config)``.

    A decoding step writes its token in place and reads the cache once, where DynamicCache copies all of it. Layers with
    a sliding window are rings. Works with any attention implementation; gqa's reads rings and int8 as they lie.

    Parameters
    ----------
    config : PreTrainedConfig, optional
        The model's: tells which layers have windows. Layers that are not plain attention get transformers' own caches.
    dtype : dtype, optional
        What is stored: float32, float64, float16, bfloat16 or int8 (one scale for each token and head), as PyTorch's
        dtype, NumPy's or a name. Default: the dtype of the keys that come.
    capacity : int
        Tokens to make room for at first; doubled when they are used up.

    Raises
    ------
    TypeError, ValueError
        For a dtype that caches do not store, or a negative capacity.

    Examples
    --------
    >>> import gqa.transformers, torch, transformers
    >>> gqa.transformers.register()
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    ...     num_key_value_heads=2, attn_implementation="gqa", eos_token_id=None,
    ... )
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> prompt = torch.tensor([[1, 2, 3]])
    >>> cache = gqa.transformers.KVCache(config)
    >>> model.generate(prompt, past_key_values=cache, max_new_tokens=5, do_sample=False).shape
    torch.Size([1, 8])
    >>> cache.get_seq_length()
    7
    """

    def __init__(self, config: Any = None, *, dtype: Any = None, capacity: int = 256) -> None:
        stored = None if dtype is None else storage_dtype(named_dtype(dtype))
        make = partial(CacheLayer, stored=stored, capacity=check_int("capacity", capacity, 0))
        if config is None:
            super().__init__(layer_class_to_replicate=make)
            return
        super().__init__(layers=[_replaced(layer, make) for layer in DynamicCache(config=config).layers])


def _replaced(layer: Any, make: Any) -> Any:
    """Plain attention's layer by one of ours; any other as it is."""
    if type(layer) is DynamicSlidingWindowLayer:
        return make(window=layer.sliding_window)
    return make() if type(layer) is DynamicLayer else layer
