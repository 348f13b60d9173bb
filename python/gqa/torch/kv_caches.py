"""The caches of gqa on tensors: keys and values go in, and results come out, without a copy besides the append's."""

from __future__ import annotations

from typing import Any

import torch

from gqa.caches import kv, paged
from gqa.quantization import Quantized
from gqa.torch.calls import attended
from gqa.torch.modes import is_recorded
from gqa.torch.tensors import as_tensor, as_viewed, named_dtype, require_tensor


class KVCache(kv.KVCache):
    """:class:`gqa.KVCache` on tensors of PyTorch.

    Parameters
    ----------
    batch, kv_heads, capacity, head_dim, v_head_dim, dtype, window, layout
        As for :class:`gqa.KVCache`; dtype may be one of PyTorch's.

    Notes
    -----
    Every method is that of :class:`gqa.KVCache`, with tensors in place of arrays; ``keys`` and ``values`` are tensors
    that share the cache's memory. Without gradients, and not within torch.compile, where a graph breaks.

    Examples
    --------
    >>> import gqa.torch, torch
    >>> cache = gqa.torch.KVCache(batch=1, kv_heads=2, capacity=64, head_dim=16)
    >>> for tokens in (5, 1):
    ...     q, k, v = (torch.randn(1, heads, tokens, 16) for heads in (8, 2, 2))
    ...     out = cache.attend(q, k, v)
    >>> out.shape, cache.lengths, cache.keys.shape
    (torch.Size([1, 8, 1, 16]), tensor([6]), torch.Size([1, 2, 6, 16]))
    """

    def __init__(self, *sizes: int, dtype: Any = torch.float32, **options: Any) -> None:
        super().__init__(*sizes, dtype=named_dtype(dtype), **options)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored keys and values."""
        return getattr(torch, self._slots.dtype)

    @property
    def lengths(self) -> torch.Tensor:
        """How many tokens each sequence has been given: shape (B,), a copy."""
        return torch.tensor(self._slots.lengths)

    @property
    def keys(self) -> Any:
        """The stored keys as a tensor, shape (B, Hkv, n, D); :class:`gqa.Quantized` for int8."""
        return _stored(super().keys)

    @property
    def values(self) -> Any:
        """The stored values as a tensor, shape (B, Hkv, n, Dv); :class:`gqa.Quantized` for int8."""
        return _stored(super().values)

    def append(self, k: Any, v: Any, lengths: Any = None) -> KVCache:
        """Write new tokens behind those that are there; see :meth:`gqa.KVCache.append`."""
        _refuse_gradients(k=k, v=v)
        super().append(as_viewed(k), as_viewed(v), as_viewed(lengths))
        return self

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, q: Any, k: Any = None, v: Any = None, **options: Any) -> Any:
        """Append k and v, if given, and attend to everything there is; see :meth:`gqa.KVCache.attend`."""
        require_tensor("q", q)
        _refuse_gradients(q=q, k=k, v=v, **options)
        return attended(super().attend, (q, k, v), self._slots.head_dims[1], options)


class PagedKVCache(paged.PagedKVCache):
    """:class:`gqa.PagedKVCache` on tensors of PyTorch.

    Parameters
    ----------
    num_pages, page_size, kv_heads, head_dim, v_head_dim, dtype, storage
        As for :class:`gqa.PagedKVCache`; dtype may be one of PyTorch's, storage a pair of tensors.

    Notes
    -----
    Every method is that of :class:`gqa.PagedKVCache`, with tensors in place of arrays; ``keys``, ``values`` and
    ``block_tables`` are tensors. Without gradients, and not within torch.compile, where a graph breaks.

    Examples
    --------
    >>> import gqa.torch, torch
    >>> cache = gqa.torch.PagedKVCache(num_pages=8, page_size=16, kv_heads=2, head_dim=32)
    >>> one = cache.add()
    >>> q, k, v = torch.randn(20, 8, 32), torch.randn(20, 2, 32), torch.randn(20, 2, 32)
    >>> cache.attend([one], q, [20], k, v).shape
    torch.Size([20, 8, 32])
    >>> cache.block_tables
    {0: tensor([0, 1])}
    """

    def __init__(self, *sizes: int, dtype: Any = torch.float32, storage: Any = None, **options: Any) -> None:
        if storage is not None:
            storage = tuple(as_viewed(x) for x in storage)
        super().__init__(*sizes, dtype=named_dtype(dtype), storage=storage, **options)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored keys and values."""
        return getattr(torch, super().dtype.name)

    @property
    def keys(self) -> Any:
        """The pool of keys as a tensor, shape (num_pages, Hkv, page_size, D); :class:`gqa.Quantized` for int8."""
        return _stored(super().keys)

    @property
    def values(self) -> Any:
        """The pool of values as a tensor, shape (num_pages, Hkv, page_size, Dv); :class:`gqa.Quantized` for int8."""
        return _stored(super().values)

    @property
    def block_tables(self) -> dict[int, Any]:
        """The pages of each sequence, by id."""
        return {id_: torch.from_numpy(pages) for id_, pages in super().block_tables.items()}

    def append(self, ids: Any, k: Any, v: Any, lengths: Any) -> PagedKVCache:
        """Write new tokens behind those that are there; see :meth:`gqa.PagedKVCache.append`."""
        _refuse_gradients(k=k, v=v)
        super().append(as_viewed(ids), as_viewed(k), as_viewed(v), as_viewed(lengths))
        return self

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, ids: Any, q: Any, q_lengths: Any, k: Any = None, v: Any = None, **options: Any) -> Any:
        """Append k and v, if given, and attend, each sequence its own; see :meth:`gqa.PagedKVCache.attend`."""
        require_tensor("q", q)
        _refuse_gradients(q=q, k=k, v=v, **options)

        def attend(q: Any, k: Any, v: Any, **viewed: Any) -> Any:
            return super(PagedKVCache, self).attend(as_viewed(ids), q, as_viewed(q_lengths), k, v, **viewed)

        return attended(attend, (q, k, v), self._head_dims[1], options)


def _stored(x: Any) -> Any:
    return x if isinstance(x, Quantized) else as_tensor(x)


def _refuse_gradients(**arguments: Any) -> None:
    """NotImplementedError if one of these requires a gradient: a cache keeps numbers, not where they come from."""
    for name, x in arguments.items():
        if is_recorded((x,)):
            raise NotImplementedError(
                f"{name} requires a gradient, which caches do not pass on: call within torch.no_grad(), or give its "
                "detach()"
            )
