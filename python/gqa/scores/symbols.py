"""What score functions are called with: symbols, which write down what is done to them, and arrays to be indexed."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from gqa.scores.functions import NAMES, call
from gqa.scores.graph import BOOL, FLOAT, WHOLE, ArrayUse, Graph, Operand

_DTYPES = {FLOAT: np.dtype("float64"), WHOLE: np.dtype("int64"), BOOL: np.dtype("bool")}
_OPERATORS = [
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow",
    "rpow", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift", "rshift", "rrshift", "lt", "le", "gt",
    "ge", "eq", "ne", "neg", "pos", "abs", "invert",
]  # fmt: skip


class Symbol(Operand):
    """A number that is not known yet: one score, its coordinates, or what a function computed from them."""

    __slots__ = ()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Symbol:
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        return self._call(name, inputs, {key: x for key, x in options.items() if x is not None})

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Symbol:
        return self._call(function.__name__, args, options)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), options: Any = None) -> Symbol:
        return _torch_call(function, args, options or {})

    def _call(self, name: str, args: Any, options: dict[str, Any]) -> Symbol:
        return Symbol(self.graph, call(self.graph, name, args, options))

    def __getattr__(self, name: str) -> Any:
        if name in NAMES and not name.startswith("r"):
            return lambda *args, **options: self._call(name, (self, *args), options)
        if name.endswith("_") and name[:-1] in NAMES:
            return lambda *args, **options: self._call(name, (self, *args), options)
        if name.startswith("_"):  # what libraries ask about
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise self.graph.refused(TypeError, f"asks a symbol for {name!r}, which stands for one number and has none")

    # A symbol looks like an array without axes; torch's where is that of its first argument.

    shape = ()
    ndim = 0
    size = 1
    device = "cpu"

    @property
    def dtype(self) -> np.dtype[Any]:
        return _DTYPES[self.graph.kind(self.number)]

    def where(self, condition: Any, other: Any) -> Symbol:
        return self._call("where", (condition, self, other), {})

    def __divmod__(self, other: Any) -> tuple[Symbol, Symbol]:
        return self._call("floordiv", (self, other), {}), self._call("mod", (self, other), {})

    def __rdivmod__(self, other: Any) -> tuple[Symbol, Symbol]:
        return self._call("floordiv", (other, self), {}), self._call("mod", (other, self), {})

    def __floor__(self) -> Symbol:
        return self.floor().astype(int)  # type: ignore[no-any-return]

    def __ceil__(self) -> Symbol:
        return self.ceil().astype(int)  # type: ignore[no-any-return]

    def __trunc__(self) -> Symbol:
        return self.trunc().astype(int)  # type: ignore[no-any-return]

    # What needs the number itself, which is not there while a function is traced.

    def _refuse(self, what: str) -> NoReturn:
        raise self.graph.refused(TypeError, what)

    def __bool__(self) -> bool:
        self._refuse(
            "asks whether a symbol is true, which is not known while it is traced: instead of `if` use np.where, "
            "instead of `and`, `or`, `not` and `a < b < c` use &, |, ~ and (a < b) & (b < c), and np.minimum for min"
        )

    def __index__(self) -> int:
        self._refuse(
            "uses a symbol as an index or a count of Python's: loop over numbers that are known, make a list an array, "
            "and index only arrays from outside of the function (variables, attributes, defaults), not those made in it"
        )

    def __float__(self) -> float:
        self._refuse("makes a symbol a Python number: use astype(float), and NumPy's functions in place of math's")

    def __int__(self) -> int:
        self._refuse("makes a symbol a Python number: use astype(int)")

    def __complex__(self) -> complex:
        self._refuse("makes a symbol a complex number, expected real ones")

    def __round__(self, digits: Any = None) -> NoReturn:
        self._refuse("rounds a symbol: use np.floor(x + 0.5)")

    def __format__(self, form: str) -> str:
        self._refuse("writes a symbol as text, but its number is not known while it is traced")

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        self._refuse(
            "makes an array of a symbol, or indexes one by it that gqa does not see: index only arrays from outside of "
            "the function (variables, attributes, defaults), not those made in it"
        )

    def __iter__(self) -> NoReturn:
        self._refuse("loops over a symbol, which stands for one number: loop over numbers that are known")

    def __len__(self) -> int:
        self._refuse("asks for the length of a symbol, which stands for one number")

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse("indexes a symbol, which stands for one number and not for the whole array")

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self._refuse("assigns to a part of a symbol: use np.where(condition, value, symbol)")

    def __hash__(self) -> int:
        self._refuse("looks a symbol up in a dict or a set: use an array in place of the dict, and index it")

    def __contains__(self, x: Any) -> bool:
        self._refuse("looks for something in a symbol, which stands for one number")

    def __matmul__(self, other: Any) -> NoReturn:
        self._refuse("multiplies matrices, but a symbol stands for one number")

    __rmatmul__ = __matmul__

    def item(self) -> NoReturn:
        self._refuse("asks for the number that a symbol stands for, which is not known while it is traced")

    def __repr__(self) -> str:
        return f"<a {self.graph.kind(self.number)} that is not known yet>"


def _operator(name: str) -> Any:
    def operator(self: Symbol, *other: Any) -> Symbol:
        return Symbol(self.graph, call(self.graph, name, (self, *other), {}))

    return operator


for _name in _OPERATORS:
    setattr(Symbol, f"__{_name}__", _operator(_name))


class CapturedArray:
    """An array that a function reads, in its place while the function is traced: indexed, it gives a symbol.

    source is its number among the arrays that the function captures, or an array that the function made.
    """

    __slots__ = ("_array", "_graph", "_kind", "_name", "_source")

    def __init__(self, graph: Graph, array: Any, name: str, source: Any = None) -> None:
        self._graph, self._array, self._name = graph, array, name
        self._source, self._kind = array if source is None else source, ""

    def __getitem__(self, index: Any) -> Symbol:
        g, name = self._graph, self._name
        shape = tuple(self._array.shape) or (1,)  # without axes: to the core one of a single element
        indices = index if isinstance(index, tuple) else (index,)
        if len(indices) != len(shape):
            raise g.refused(
                ValueError,
                f"indexes {name!r}, an array of shape {shape}, with {len(indices)} indices, expected one for each of "
                f"its {len(shape)} axes",
            )
        if len(shape) > 8:
            raise g.refused(ValueError, f"indexes {name!r}, an array of {len(shape)} axes, expected at most 8")
        operands = tuple(self._index(x) for x in indices)
        number = g.array(ArrayUse(name, self._graph.where, len(shape), array_kind(g, name, self._array), self._source))
        from_end = tuple(g.known(n) is not None and g.known(n) < 0 for n in operands)
        return Symbol(g, g.put("gather", g.arrays[number].kind, operands, (number, from_end)))

    def _index(self, x: Any) -> int:
        g = self._graph
        if x is None or isinstance(x, slice) or x is Ellipsis:
            raise g.refused(
                TypeError, f"indexes {self._name!r} with {x!r}, expected one whole number for each axis, no slices"
            )
        number = g.lift(x)
        if g.kind(number) != WHOLE:
            raise g.refused(
                TypeError,
                f"indexes {self._name!r} with a {g.kind(number)}, expected whole numbers: use astype(int), or // for /",
            )
        return number

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        self.refuse(f"hands it to {ufunc.__name__}")

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function.__name__ == "take":
            return self[args[1]] if len(args) == 2 and not options else self.refuse("takes from it along an axis")
        return self.refuse(f"hands it to {function.__name__}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), options: Any = None) -> Symbol:
        return _torch_call(function, args, options or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in ("shape", "size", "ndim", "dtype", "device"):
            if name in ("shape", "size") and isinstance(self._source, int):
                self._graph.shapes_read.add(self._source)
            return getattr(self._array, name)
        return self.refuse(f"asks it for {name!r}")

    def __len__(self) -> int:
        return int(self.shape[0])

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self.refuse("assigns to it")

    def __iter__(self) -> NoReturn:
        self.refuse("loops over it")

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        self.refuse("makes a NumPy array of it")

    def __bool__(self) -> bool:
        self.refuse("asks whether it is true")

    def __float__(self) -> float:
        self.refuse("makes a number of it")

    __int__ = __index__ = __float__

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<the array {self._name}>"

    def refuse(self, what: str) -> NoReturn:
        axes = ", ".join("ijklmnop"[: len(self._array.shape)])
        raise self._graph.refused(
            TypeError,
            f"uses the array {self._name!r} and {what}: all that a score function can do with an array is index it, "
            f"{self._name}[{axes}]; compute others before, outside of it",
        )


def _refused_operator(name: str) -> Any:
    def operator(self: CapturedArray, *other: Any) -> Any:
        self.refuse("computes with all of it")

    return operator


for _name in _OPERATORS:
    setattr(CapturedArray, f"__{_name}__", _refused_operator(_name))


def array_kind(g: Graph, name: str, x: Any) -> str:
    """The kind of an array's elements; TypeError if they are none that score functions compute with."""
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype.startswith(("int", "uint")):
        return WHOLE
    if dtype == "bool":
        return BOOL
    if dtype in ("float32", "float64", "float16", "bfloat16"):
        return FLOAT
    raise g.refused(TypeError, f"reads the array {name!r} of dtype {dtype}, expected floats, integers or bools")


def _torch_call(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Symbol:
    """A function or method of torch that was called with symbols or captured arrays."""
    operands = [*args, *options.values()]
    operands += [x for y in operands if isinstance(y, (tuple, list)) for x in y]
    for x in operands:
        if isinstance(x, CapturedArray) and not (x is args[0] and function.__name__ == "__getitem__"):
            x.refuse(f"hands it to {function.__name__}")
    symbol = next(x for x in operands if isinstance(x, Symbol))
    if function.__name__ == "__getitem__":
        array = args[0] if isinstance(args[0], CapturedArray) else CapturedArray(symbol.graph, args[0], "a tensor")
        return array[args[1]]
    named = dict(options)
    inputs = [named.pop(name) for name in ("input", "self") if name in named and function.__name__ != "where"]
    if "other" in named and function.__name__ != "where":
        return symbol._call(function.__name__, (*inputs, *args, named.pop("other")), named)
    return symbol._call(function.__name__, (*inputs, *args), named)
