"""The attention layer of flax nnx over NumPy parameters: projections by BLAS, attention by the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gqa.arguments import AnyArray, Array, as_array, dtype_name
from gqa.dtypes import FLOATS, dtype_named, name_of, require_float
from gqa.nn.dropout import attend_kept
from gqa.nn.gradients import MultiHeadAttentionGradients, Pullback, attended, composed, of_inputs
from gqa.nn.inputs import read_inputs
from gqa.nn.layers import Layer, LayerNorm, Linear, check_keys
from gqa.nn.masks import four_axes
from gqa.rules import check_group_sizes
from gqa.scaled_dot_product import attention
from gqa.shapes import Shape, check_flag, check_float, check_int, check_shape


class MultiHeadAttention:
    """Multi-head attention with grouped key/value heads, as ``flax.nnx.MultiHeadAttention``.

    Parameters
    ----------
    num_heads : int
        Query heads.
    in_features : int
        Channels of inputs_q.
    qkv_features : int, optional
        Channels of all query heads together, a multiple of num_heads; default in_features. head_dim is
        qkv_features / num_heads.
    out_features : int, optional
        Channels of the result; default in_features.
    num_kv_heads, num_key_value_heads : int, optional
        Key/value heads, a divisor of num_heads; default num_heads. Two names for one thing.
    in_kv_features : int, optional
        Channels of inputs_k and inputs_v; default in_features.
    use_bias : bool
        Add a bias in each projection.
    normalize_qk : bool
        Layer normalisation over head_dim (learned scale, no bias, epsilon 1e-6) of queries and keys after their
        projection (arXiv:2302.05442).
    decode : bool
        Whether calls decode token by token with the cache.
    dropout_rate : float
        Share of attention weights that a call drops unless it is deterministic; 0 <= dropout_rate < 1.
    broadcast_dropout : bool
        Drop the same weights in all heads and batch entries.
    deterministic : bool
        Whether calls leave dropout out.
    dtype : dtype
        Of parameters, inputs (which are converted) and results: float32, float64, float16 or bfloat16.
    rng : numpy.random.Generator or int, optional
        For the initial kernels and for dropout.

    Attributes
    ----------
    query, key, value, out
        Projections with ``kernel`` and ``bias``: kernels (in_features, num_heads, head_dim), (in_kv_features,
        num_kv_heads, head_dim) twice and (num_heads, head_dim, out_features); biases are the kernel's shape less its
        inputs, or None. Initially normal with variance 1 / inputs, and 0.
    query_ln, key_ln
        With ``scale`` (head_dim,), initially 1; None unless normalize_qk.
    cached_key, cached_value : ndarray, shape (..., max_length, num_kv_heads, head_dim)
        The cache, or None. Slots that no call has written are 0.
    cache_index : int
        Number of tokens in the cache.

    Raises
    ------
    TypeError, ValueError
        For sizes that are no integers, or do not divide; for a dtype that is none of the four.

    Notes
    -----
    Unlike flax, a query that may attend no key gives out.bias alone (its attention is 0, not the mean of the values);
    decoding past the length of the cache is an error; a mask is refused if it looks like one to be added to scores.
    Projections in float16 and bfloat16 are computed in float32 and rounded once: they save memory, not time. Dropout
    attends twice, with a random mask of the size of the weights, and is slow; nothing else materialises weights.
    Grouped heads are from Ainslie et al. 2023, arXiv:2305.13245.

    Examples
    --------
    >>> import gqa.nn, numpy as np
    >>> layer = gqa.nn.MultiHeadAttention(8, 32, num_kv_heads=2, rng=0)
    >>> x = np.ones((4, 10, 32), np.float32)
    >>> full = layer(x, is_causal=True)
    >>> layer.init_cache(x.shape)
    >>> steps = [layer(x[:, i : i + 1], decode=True) for i in range(10)]
    >>> np.allclose(full, np.concatenate(steps, axis=1), atol=1e-6)
    True
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        *,
        num_key_value_heads: int | None = None,
        in_kv_features: int | None = None,
        use_bias: bool = True,
        normalize_qk: bool = False,
        decode: bool = False,
        dropout_rate: float = 0.0,
        broadcast_dropout: bool = True,
        deterministic: bool = True,
        dtype: Any = "float32",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        def size(name: str, value: int | None, default: int) -> int:
            return default if value is None else check_int(name, value, 1)

        self.num_heads = check_int("num_heads", num_heads, 1)
        self.in_features = check_int("in_features", in_features, 1)
        self.qkv_features = size("qkv_features", qkv_features, self.in_features)
        self.out_features = size("out_features", out_features, self.in_features)
        self.in_kv_features = size("in_kv_features", in_kv_features, self.in_features)
        alias = size("num_key_value_heads", num_key_value_heads, self.num_heads)
        self.num_kv_heads = size("num_kv_heads", num_kv_heads, alias)
        if num_key_value_heads is not None and alias != self.num_kv_heads:
            raise ValueError(f"num_kv_heads is {self.num_kv_heads}, but num_key_value_heads is {alias}")
        check_group_sizes("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)
        if self.qkv_features % self.num_heads:
            raise ValueError(f"qkv_features is {self.qkv_features}, expected a multiple of num_heads {self.num_heads}")
        self.head_dim = self.qkv_features // self.num_heads
        self.use_bias = check_flag("use_bias", use_bias)
        self.normalize_qk = check_flag("normalize_qk", normalize_qk)
        self.decode = check_flag("decode", decode)
        self.dropout_rate = check_float("dropout_rate", dropout_rate, 0.0)
        if self.dropout_rate >= 1:
            raise ValueError(f"dropout_rate is {self.dropout_rate}, expected less than 1")
        self.broadcast_dropout = check_flag("broadcast_dropout", broadcast_dropout)
        self.deterministic = check_flag("deterministic", deterministic)
        if name_of(dtype) not in FLOATS:
            raise TypeError(f"dtype is {name_of(dtype)}, expected {', '.join(FLOATS)}")
        self.dtype = dtype_named(name_of(dtype))
        self.rng = np.random.default_rng(rng)

        heads, kv_heads = (self.num_heads, self.head_dim), (self.num_kv_heads, self.head_dim)
        options: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype, "rng": self.rng}
        self.query = Linear("query", (self.in_features,), heads, **options)
        self.key = Linear("key", (self.in_kv_features,), kv_heads, **options)
        self.value = Linear("value", (self.in_kv_features,), kv_heads, **options)
        self.out = Linear("out", heads, (self.out_features,), **options)
        self.query_ln, self.key_ln = (
            LayerNorm(name, self.head_dim, dtype=self.dtype) if self.normalize_qk else None
            for name in ("query_ln", "key_ln")
        )
        self.cached_key: Array | None = None
        self.cached_value: Array | None = None
        self.cache_index = 0

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Copy parameters from a nested dict, such as ``nnx.to_pure_dict(nnx.state(layer, nnx.Param))`` gives.

        Parameters
        ----------
        state : dict
            ``{"query": {"kernel": array, "bias": array}, ..., "query_ln": {"scale": array}, ...}``, every parameter
            of this layer and no other.

        Raises
        ------
        TypeError, ValueError
            If a parameter is missing, unknown, or of a wrong shape or dtype; the layer is left as it was.
        """
        layers = {name: layer for name, layer in vars(self).items() if isinstance(layer, Layer)}
        check_keys("state", state, layers)
        parameters = {name: layer.read(state[name]) for name, layer in layers.items()}
        for name, arrays in parameters.items():
            vars(layers[name]).update(arrays)

    def init_cache(self, input_shape: Shape) -> None:
        """Make an empty cache for decoding inputs_q that have, all tokens together, that shape.

        Parameters
        ----------
        input_shape : tuple of int
            (..., max_length, in_features)
        """
        sizes = tuple(check_int("input_shape", n, 0) for n in input_shape)
        if len(sizes) < 2 or sizes[-1] != self.in_features:
            raise ValueError(f"input_shape is {sizes}, expected (..., max_length, {self.in_features})")
        shape = (*sizes[:-1], self.num_kv_heads, self.head_dim)
        self.cached_key, self.cached_value = np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)
        self.cache_index = 0

    def set_view(
        self,
        *,
        decode: bool | None = None,
        batch_size: int | Shape | None = None,
        max_length: int | None = None,
        deterministic: bool | None = None,
    ) -> None:
        """Change what calls do by default, and make an empty cache if batch_size and max_length are given.

        Parameters
        ----------
        decode, deterministic : bool, optional
            As for the constructor; None leaves them as they are.
        batch_size : int or tuple of int, optional
            Leading sizes of the inputs.
        max_length : int, optional
            Number of tokens that the cache holds.
        """
        decode = self.decode if decode is None else check_flag("decode", decode)
        deterministic = self.deterministic if deterministic is None else check_flag("deterministic", deterministic)
        if (batch_size is None) != (max_length is None):
            missing = "batch_size" if batch_size is None else "max_length"
            raise TypeError(f"{missing} is missing: a cache needs batch_size and max_length")
        if batch_size is not None and max_length is not None:
            sizes = batch_size if isinstance(batch_size, (tuple, list)) else (batch_size,)
            leading = (check_int("batch_size", n, 0) for n in sizes)
            self.init_cache((*leading, check_int("max_length", max_length, 0), self.in_features))
        self.decode, self.deterministic = decode, deterministic

    def __call__(
        self,
        inputs_q: AnyArray,
        inputs_k: AnyArray | None = None,
        inputs_v: AnyArray | None = None,
        *,
        mask: AnyArray | None = None,
        is_causal: bool = False,
        decode: bool | None = None,
        deterministic: bool | None = None,
        num_threads: int | None = None,
    ) -> Array:
        """Attend.

        Parameters
        ----------
        inputs_q : ndarray, shape (..., Q, in_features)
            Any number of leading axes, none included; of a float type.
        inputs_k, inputs_v : ndarray, shape (..., K, in_kv_features), optional
            Default inputs_q, and inputs_k.
        mask : ndarray, optional
            True or nonzero: attend. Broadcast to (..., num_heads, Q, K); K is the length of the cache when decoding.
        is_causal : bool
            Query i attends keys 0 to i. Decoding is causal in any case.
        decode : bool, optional
            Take one token, append it to the cache and attend the cache. Default as constructed.
        deterministic : bool, optional
            Leave dropout out. Default as constructed.
        num_threads : int, optional
            As in :func:`gqa.attention`; the projections are NumPy's.

        Returns
        -------
        ndarray, shape (..., Q, out_features)

        Raises
        ------
        TypeError
            For an argument of a wrong type or dtype.
        ValueError
            For shapes that do not fit; when decoding, without a cache, past its length, or with more than one token.
            The cache is left as it was.
        """
        is_causal = check_flag("is_causal", is_causal)
        decode = self.decode if decode is None else check_flag("decode", decode)
        deterministic = self.deterministic if deterministic is None else check_flag("deterministic", deterministic)
        if num_threads is not None:
            num_threads = check_int("num_threads", num_threads, 1)
        inputs = read_inputs(inputs_q, inputs_k, inputs_v, self.in_features, self.in_kv_features)
        leading, queries, keys = _sizes(inputs)
        if decode:
            keys = self._check_decode(inputs)
        if mask is not None:
            mask = four_axes(mask, (*leading, self.num_heads, queries, keys))

        query, key, value = (
            project(_one_leading_axis(x)) for project, x in zip((self.query, self.key, self.value), inputs.values())
        )
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        options: dict[str, Any] = {"causal": is_causal, "query_offset": 0}
        if decode:
            key, value = self._append(key, value)
            options = {"kv_lengths": np.full(len(query), self.cache_index)}
        options |= {"layout": "bshd", "num_threads": num_threads}
        if deterministic or self.dropout_rate == 0:
            attended = attention(query, key, value, mask=mask, **options)
        else:
            sets = (1, 1) if self.broadcast_dropout else (len(query), self.num_heads)
            keep = self.rng.random((*sets, queries, key.shape[1]), np.float32) >= self.dropout_rate
            attended = attend_kept(query, key, value, keep, 1 - self.dropout_rate, {"mask": mask, **options})
        return self.out(attended).reshape(*leading, queries, self.out_features)

    def vjp(
        self,
        inputs_q: AnyArray,
        inputs_k: AnyArray | None = None,
        inputs_v: AnyArray | None = None,
        *,
        mask: AnyArray | None = None,
        is_causal: bool = False,
        num_threads: int | None = None,
    ) -> tuple[Array, Callable[[AnyArray], MultiHeadAttentionGradients]]:
        """Attend, and return what turns a gradient by the result into gradients by inputs and parameters.

        Parameters
        ----------
        inputs_q, inputs_k, inputs_v, mask, is_causal, num_threads
            As for a call.

        Returns
        -------
        out : ndarray, shape (..., Q, out_features)
            What a call without decoding and dropout returns, to the last bit.
        pullback : callable
            From dout, of out's shape and any float type, to the gradients of sum(dout * out): see
            :class:`MultiHeadAttentionGradients`. It keeps inputs, projections and parameters where they lie: change
            none in place before it has been called, as often as you like.

        Raises
        ------
        TypeError
            For an argument of a wrong type or dtype; so does pullback.
        ValueError
            For shapes that do not fit, and where calls decode or drop weights, which has no gradient here.

        Examples
        --------
        >>> import gqa.nn, numpy as np
        >>> layer = gqa.nn.MultiHeadAttention(8, 32, num_kv_heads=2, rng=0)
        >>> x = np.ones((4, 10, 32), np.float32)
        >>> out, pullback = layer.vjp(x, is_causal=True)
        >>> gradients = pullback(2 * out)  # by the inputs and parameters, of the sum of squares
        >>> layer.out.bias -= 0.01 * gradients.parameters["out"]["bias"]
        """
        if self.decode:
            raise ValueError("the layer decodes, which has no gradient: expected decode=False")
        if self.dropout_rate and not self.deterministic:
            raise ValueError(f"dropout_rate is {self.dropout_rate}, which has no gradient: expected deterministic=True")
        is_causal = check_flag("is_causal", is_causal)
        inputs = read_inputs(inputs_q, inputs_k, inputs_v, self.in_features, self.in_kv_features)
        leading, queries, keys = _sizes(inputs)
        if mask is not None:
            mask = four_axes(mask, (*leading, self.num_heads, queries, keys))

        query, of_query = _projected(self.query, self.query_ln, inputs["inputs_q"])
        key, of_key = _projected(self.key, self.key_ln, inputs["inputs_k"])
        value, of_value = _projected(self.value, None, inputs["inputs_v"])
        options = {"mask": mask, "causal": is_causal, "query_offset": 0, "layout": "bshd", "num_threads": num_threads}
        heads, of_attention = attended(query, key, value, options)
        out, of_out = self.out.vjp(heads)
        out = out.reshape(*leading, queries, self.out_features)
        left_out = [x is None for x in (inputs_q, inputs_k, inputs_v)]

        def pullback(dout: AnyArray) -> MultiHeadAttentionGradients:
            dout = as_array("dout", dout)
            require_float("dout", dtype_name("dout", dout))
            check_shape("dout", dout.shape, out.shape)
            dheads, of_parameters = of_out(dout)
            by_inputs = []
            for through, gradient in zip((of_query, of_key, of_value), of_attention(dheads)):
                by_input, of_part = through(gradient)
                by_inputs.append(by_input)
                of_parameters |= of_part
            return MultiHeadAttentionGradients(*of_inputs(by_inputs, list(inputs.values()), left_out), of_parameters)

        return out, pullback

    def _check_decode(self, inputs: dict[str, Array]) -> int:
        """The length of the cache; ValueError unless it can take the inputs as its next token."""
        if self.cached_key is None or self.cached_value is None:
            raise ValueError("there is no cache to decode with; call init_cache, or set_view with sizes, first")
        check_shape("cached_value", self.cached_value.shape, self.cached_key.shape)
        leading, max_length = self.cached_key.shape[:-3], int(self.cached_key.shape[-3])
        for name, x in inputs.items():
            check_shape(name, x.shape, (*leading, 1, x.shape[-1]))
        if not 0 <= self.cache_index < max_length:
            raise ValueError(f"cache_index is {self.cache_index}, beyond the {max_length} tokens that the cache holds")
        for name in self.out.shapes:
            self.out.parameter(name)  # used after the cache has been written
        return max_length

    def _append(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Write (batch, 1, heads, head_dim) to the cache; returns all of it with one leading axis."""
        caches = []
        for cache, x in ((self.cached_key, key), (self.cached_value, value)):
            cache = as_array("cache", cache)
            cache[..., self.cache_index, :, :] = x.reshape(*cache.shape[:-3], *x.shape[2:])
            caches.append(cache.reshape(len(x), *cache.shape[-3:]))
        self.cache_index += 1
        return caches[0], caches[1]


def _sizes(inputs: dict[str, Array]) -> tuple[Shape, int, int]:
    """The leading axes, and the numbers of queries and keys."""
    queries = inputs["inputs_q"].shape
    return queries[:-2], queries[-2], inputs["inputs_k"].shape[-2]


def _one_leading_axis(x: Array) -> Array:
    """x (..., length, features) as (batch, length, features)."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _projected(linear: Linear, norm: LayerNorm | None, x: Array) -> tuple[Array, Pullback]:
    """x (..., length, features) through both, as (batch, length, heads, head_dim), and the pullback of that."""
    y, pullback = linear.vjp(_one_leading_axis(x))
    if norm is None:
        return y, pullback
    y, of_norm = norm.vjp(y)
    return y, composed(pullback, of_norm)
