"""Functions made anew with captured arrays in place of the arrays that they refer to.

An array itself cannot be asked to be indexed by a symbol, so a traced function gets other variables: those around it,
globals, defaults, and the attributes of its objects. What is not changed by that stays as it is.
"""

from __future__ import annotations

import builtins
import functools
import types
from typing import Any

from gqa.scores.captures import Captures, Identity, global_names, is_array, is_scalar, is_watched, of_a_library
from gqa.scores.graph import Graph
from gqa.scores.symbols import CapturedArray


class Rebuilding:
    """What replaces the values that functions refer to, for one trace.

    attributes: what was asked of objects, as (object, name, key), in order: a trace holds while the keys stay the same.
    """

    def __init__(self, graph: Graph, captures: Captures) -> None:
        self.graph, self.captures = graph, captures
        self.attributes: list[tuple[Identity, str, Any]] = []
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def of(self, x: Any, name: str) -> Any:
        """What takes the place of a value, which functions know by that name."""
        made = self._made.get(id(x), self)
        if made is not self:
            return made
        self._kept.append(x)
        result = self._new(x, name)
        self._made[id(x)] = result
        return result

    def _new(self, x: Any, name: str) -> Any:
        if is_array(type(x)):
            array = CapturedArray(self.graph, x, name, self.captures.numbers.get(id(x)))
            return array if x.ndim else array[0]
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, types.MethodType):
            return types.MethodType(self.of(x.__func__, name), self.of(x.__self__, "self"))
        if isinstance(x, functools.partial):
            args = tuple(self.of(y, f"{name}.args[{i}]") for i, y in enumerate(x.args))
            options = {key: self.of(y, key) for key, y in x.keywords.items()}
            return functools.partial(self.of(x.func, name), *args, **options)
        if isinstance(x, (tuple, list)):
            return self._sequence(x, name)
        if isinstance(x, dict):
            values = {key: self.of(y, f"{name}[{key!r}]") for key, y in x.items()}
            return x if all(values[key] is y for key, y in x.items()) else values
        return Watched(x, self, name) if not is_scalar(x) and is_watched(x) else x

    def _sequence(self, x: Any, name: str) -> Any:
        fields = getattr(x, "_fields", range(len(x)))
        names = (f"{name}.{i}" if isinstance(i, str) else f"{name}[{i}]" for i in fields)
        values = [self.of(y, label) for y, label in zip(x, names)]
        if all(old is new for old, new in zip(x, values)):
            return x
        return x._make(values) if hasattr(x, "_make") else type(x)(values)

    def _function(self, f: types.FunctionType) -> Any:
        library = of_a_library(f)
        if library and not f.__closure__:
            return f
        cells = tuple(types.CellType() for _ in f.__closure__ or ())
        names = () if library else global_names(f)
        variables: dict[str, Any] = f.__globals__ if library else {
            "__builtins__": f.__globals__.get("__builtins__", builtins), "__name__": f.__globals__.get("__name__"),
        }  # fmt: skip
        new = types.FunctionType(f.__code__, variables, f.__name__, f.__defaults__, cells)
        self._made[id(f)] = new  # before its variables, as it may be one of them
        new.__kwdefaults__ = f.__kwdefaults__
        for name, cell, old in zip(f.__code__.co_freevars, cells, f.__closure__ or ()):
            try:
                value = old.cell_contents
            except ValueError:  # not set yet
                continue
            cell.cell_contents = value if name == "__class__" else self.of(value, name)
        for name in names:
            if name in f.__globals__:
                variables[name] = self.of(f.__globals__[name], name)
        if f.__defaults__:
            arguments = f.__code__.co_varnames[: f.__code__.co_argcount][-len(f.__defaults__) :]
            new.__defaults__ = tuple(self.of(x, name) for x, name in zip(f.__defaults__, arguments))
        if f.__kwdefaults__:
            new.__kwdefaults__ = {name: self.of(x, name) for name, x in f.__kwdefaults__.items()}
        return new

    def attribute(self, x: Any, of: str, name: str) -> Any:
        """What takes the place of an attribute of an object; AttributeError where there is none."""
        value, key = self.captures.attribute(x, name)
        self.attributes.append((Identity(x), name, key))
        return self.of(value, f"{of}.{name}")


class Watched:
    """An object in the hands of a traced function: its attributes are replaced, and noted, when they are asked for."""

    __slots__ = ("_name", "_object", "_rebuilding")

    def __init__(self, x: Any, rebuilding: Rebuilding, name: str) -> None:
        self._object, self._rebuilding, self._name = x, rebuilding, name

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # as isinstance and super ask for it
        return type(self._object)

    def __getattr__(self, name: str) -> Any:
        return self._rebuilding.attribute(self._object, self._name, name)

    def _special(self, name: str, *args: Any, **options: Any) -> Any:
        function = getattr(type(self._object), name)
        if isinstance(function, types.FunctionType):
            return self._rebuilding.of(function, name)(self, *args, **options)
        return function(self._object, *args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._special("__call__", *args, **options)

    def __getitem__(self, index: Any) -> Any:
        return self._special("__getitem__", index)

    def __len__(self) -> Any:
        return self._special("__len__")

    def __iter__(self) -> Any:
        return self._special("__iter__")

    def __contains__(self, x: Any) -> Any:
        return self._special("__contains__", x)

    def __bool__(self) -> bool:
        return bool(self._object)

    def __eq__(self, other: object) -> bool:
        return bool(self._object == (other._object if type(other) is Watched else other))

    def __hash__(self) -> int:
        return hash(self._object)

    def __instancecheck__(self, x: Any) -> bool:
        return isinstance(x._object if type(x) is Watched else x, self._object)
