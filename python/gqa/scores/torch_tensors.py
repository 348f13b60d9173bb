"""torch's tensors under the hands of a traced function."""

from __future__ import annotations

import functools
from typing import Any

from gqa.scores.symbols import Symbol


def indexed_by_symbols() -> Any:
    """Within it, tensors can be indexed by symbols, also those that a function makes itself."""
    return _mode()()


@functools.cache
def _mode() -> type:
    """The class of that context; torch is there if tensors are."""
    import torch.overrides

    class Indexing(torch.overrides.TorchFunctionMode):  # type: ignore[misc, unused-ignore]
        """Hands an indexing by a symbol to the symbol, which torch would ask for its number."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
            if getattr(function, "__name__", "") == "__getitem__":
                index = args[1] if isinstance(args[1], tuple) else (args[1],)
                if any(isinstance(x, Symbol) for x in index):
                    return Symbol.__torch_function__(function, types, args, options)
            return function(*args, **(options or {}))

    return Indexing
