"""What a function depends on besides its arguments: variables around it, globals, defaults, attributes of its objects.

A walk over all of it gives a key, which is equal as long as a trace of the function stays right, and collects the
arrays on its way. A call with a function that was traced before costs no more than that.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

_LIBRARIES = frozenset((*sys.stdlib_module_names, "numpy", "torch", "jax", "ml_dtypes", "builtins"))
_UNSET = object()


class Identity:
    """Equal for the same object only, which it does not keep alive."""

    __slots__ = ("_hash", "get")

    def __init__(self, x: Any) -> None:
        self._hash = id(x)
        self.get: Callable[[], Any]
        try:
            self.get = weakref.ref(x)
        except TypeError:  # of a type without weak references
            self.get = lambda: x

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.get() is other.get() is not None


class _Code:
    """The code of functions, and the names of globals that it may use, those of functions within it included.

    A library's own functions are taken to depend on nothing but the variables around them.
    """

    __slots__ = ("code", "globals")

    def __init__(self, function: types.FunctionType) -> None:
        self.code = function.__code__
        self.globals = () if of_a_library(function) else tuple(dict.fromkeys(_names(self.code)))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


_codes: dict[int, _Code] = {}


def _code_of(function: types.FunctionType) -> _Code:
    """By the identity of the code, whose own hash takes longer than a trace may."""
    known = _codes.get(id(function.__code__))
    if known is None:
        if len(_codes) > 4096:
            _codes.clear()
        known = _codes[id(function.__code__)] = _Code(function)
    return known


class Captures:
    """The arrays that functions capture, in the order of a walk over all that they capture."""

    __slots__ = ("_kept", "arrays", "met", "numbers")

    def __init__(self) -> None:
        self.arrays: list[Any] = []
        self.numbers: dict[int, int] = {}  # of arrays, by id
        self.met: dict[int, int] = {}  # functions and containers, by id, in their order: they may contain themselves
        self._kept: list[Any] = []  # what asking for attributes made: an id is unique among the living

    def copy(self) -> Captures:
        other = Captures()
        other.arrays, other._kept = self.arrays.copy(), self._kept.copy()
        other.numbers, other.met = self.numbers.copy(), self.met.copy()
        return other

    def key(self, x: Any) -> Any:
        """A key of everything that `x` depends on; of arrays no more than their dtype and number of axes."""
        kind = type(x)
        handler = _HANDLERS.get(kind)
        if handler is None:
            handler = _HANDLERS[kind] = _handler(kind)
        return handler(self, x)

    def attribute(self, x: Any, name: str) -> tuple[Any, Any]:
        """An attribute and its key."""
        value = getattr(x, name)
        self._kept.append(value)
        return value, self.key(value)

    def parts(self, x: Any, parts: Iterable[Any]) -> Any:
        """The key of something that is made of others."""
        known = self.met.get(id(x))
        if known is not None:
            return known
        self.met[id(x)] = len(self.met)
        return (type(x), *map(self.key, parts))


# ---- keys by type --------------------------------------------------------------------------------------------------


def is_array(kind: type) -> bool:
    """Whether values of that type are arrays, of NumPy or another library."""
    return issubclass(kind, np.ndarray) or all(hasattr(kind, name) for name in ("__dlpack__", "shape", "dtype", "ndim"))


def is_scalar(x: Any) -> bool:
    """Whether a value is one that does not change."""
    return _HANDLERS.get(type(x)) is _scalar or isinstance(x, (set, frozenset, np.generic, np.dtype, enum.Enum))


def of_a_library(x: Any) -> bool:
    """Whether something belongs to Python or an array library: not looked into, as it does not change."""
    name = getattr(x, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES


def is_watched(x: Any) -> bool:
    """Whether an object's attributes may hold what a function depends on."""
    if isinstance(x, types.ModuleType):
        return x.__name__.partition(".")[0] not in _LIBRARIES
    if isinstance(x, type) or callable(x):
        return not of_a_library(x if isinstance(x, type) else type(x)) or _is_torch_module(type(x))
    return hasattr(x, "__dict__") or hasattr(type(x), "__slots__")


def _is_torch_module(kind: type) -> bool:
    return any(base.__module__ == "torch.nn.modules.module" for base in kind.__mro__)


def global_names(f: types.FunctionType) -> tuple[str, ...]:
    """The names that a function may look up among its globals; those of attributes are among them."""
    return _code_of(f).globals


def _function(c: Captures, f: Any) -> Any:
    """The variables around a function, its defaults, and globals; in the time of a call, so without frills."""
    known = c.met.get(id(f))
    if known is not None:
        return known
    c.met[id(f)] = len(c.met)
    code = _codes.get(id(f.__code__)) or _code_of(f)
    parts: list[Any] = [code]
    if f.__closure__:
        for cell in f.__closure__:
            try:
                parts.append(c.key(cell.cell_contents))
            except ValueError:  # not set yet
                parts.append(_UNSET)
    if f.__defaults__:
        parts.append(c.key(f.__defaults__))
    if f.__kwdefaults__:
        parts.append(c.key(f.__kwdefaults__))
    if code.globals:
        values = f.__globals__
        for name in code.globals:
            if name in values:
                value = values[name]
                parts.append(value if type(value) is types.ModuleType else c.key(value))
            else:
                parts.append(_UNSET)
    return tuple(parts)


def _array(c: Captures, x: Any) -> Any:
    number = c.numbers.get(id(x))
    if number is None:
        number = c.numbers[id(x)] = len(c.arrays)
        c.arrays.append(x)
    return x.dtype, x.ndim, number


def _scalar(c: Captures, x: Any) -> Any:
    return type(x), (x if x else repr(x))  # -0.0 is not 0.0


def _itself(c: Captures, x: Any) -> Any:
    return x


def _identity(c: Captures, x: Any) -> Any:
    return Identity(x)


def _items(c: Captures, x: Any) -> Any:
    return c.parts(x, x)


def _dict(c: Captures, x: Any) -> Any:
    return c.parts(x, (y for item in x.items() for y in item))


_HANDLERS: dict[type, Callable[[Captures, Any], Any]] = {
    types.FunctionType: _function,
    types.MethodType: lambda c, x: c.parts(x, (x.__func__, x.__self__)),
    functools.partial: lambda c, x: c.parts(x, (x.func, x.args, x.keywords)),
    types.ModuleType: _itself,
    **dict.fromkeys((int, float, bool, complex, str, bytes, type(None), type(...)), _scalar),
    **dict.fromkeys((set, frozenset), lambda c, x: (type(x), frozenset(x))),
}


def _handler(kind: type) -> Callable[[Captures, Any], Any]:
    if is_array(kind):
        return _array
    if issubclass(kind, (np.generic, np.dtype, enum.Enum)):
        return _scalar
    if issubclass(kind, (tuple, list)):
        return _items
    return _dict if issubclass(kind, dict) else _identity
