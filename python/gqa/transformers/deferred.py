"""Tensors whose elements are computed only if an operator of PyTorch asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only


class Deferred(torch.Tensor):  # type: ignore[misc]
    """A tensor with a shape and a dtype, and a description in place of elements.

    transformers hands masks and cached keys from one part of a model to another as tensors. Described so, they pass
    through it, and attention reads what they stand for. Whatever else a model does to one (a slice, a sum, another
    attention function) goes through PyTorch's dispatcher, and there gets the elements that the tensor claims to have.
    """

    _computed: torch.Tensor | None

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, *_: Any) -> Deferred:
        deferred: Deferred = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device="cpu")
        deferred._computed = None
        return deferred

    def compute(self) -> torch.Tensor:
        """The elements, as an ordinary tensor."""
        raise NotImplementedError

    def elements(self) -> torch.Tensor:
        """The elements, computed once."""
        if self._computed is None:
            self._computed = self.compute()
        return self._computed

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Deferred, lambda x: x.elements(), (args, kwargs or {}))
        return function(*args, **kwargs)

    def __repr__(self, **_: Any) -> str:
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype})"
