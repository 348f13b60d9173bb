"""Numbers that run code of their own when they are read: what was checked is what is computed with."""

import contextlib
import sys
import warnings

import numpy as np
import pytest

import cases
import gqa
from compare import assert_same_bits
from dlpack_producer import Producer

SHAPES = {"q": (2, 4, 3, 8), "k": (2, 2, 40, 8), "v": (2, 2, 40, 5)}


class Changing:
    """3, or 3.0, after it has given an array another shape."""

    def __init__(self, array, shape):
        self.array, self.new_shape = array, shape

    def change(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5 on
            self.array.shape = self.new_shape

    def __index__(self):
        self.change()
        return 3

    def __float__(self):
        self.change()
        return 3.0


def options(number):
    """Every way in which a number is read."""
    return [
        {"num_threads": number}, {"window": (number, 0)}, {"window": [0, number]}, {"scale": number},
        {"softcap": number}, {"query_offset": number},
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*SHAPES, "out", "mask", "sinks"])
@pytest.mark.parametrize("place", range(6))
def test_arrays_that_numbers_reshape(name, place):
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    arrays |= {"out": np.zeros((2, 4, 3, 5), np.float32), "mask": np.ones((3, 40), bool), "sinks": np.ones(4)}
    for shape in ((1, 1, 1, -1), (-1, 1, 1, 1), (-1,)):
        given = {other: x.copy() for other, x in arrays.items()}
        change = options(Changing(given[name], shape))[place]
        # The shape that it has by then does not fit, unless the number was not read or that shape is its own.
        with contextlib.suppress(ValueError):
            assert gqa.attention(**given, **change) is given["out"]


def test_a_tensor_that_reshapes_another():
    """__dlpack__ may do as it likes as well: the shape that q had when it was read counts."""
    arguments = cases.Case(queries=9, keys=40).arguments(np.float32)
    expected = gqa.attention(**arguments)

    class Late(Producer):
        def __dlpack__(self, **more):
            arguments["q"].shape = (-1,)
            return super().__dlpack__(**more)

    for name in ("k", "v"):
        with warnings.catch_warnings(), contextlib.suppress(ValueError):
            warnings.simplefilter("ignore", DeprecationWarning)
            arguments["q"].shape = (*expected.shape[:3], 16)
            assert_same_bits(gqa.attention(**arguments | {name: Late(arguments[name])}), expected)


def test_errors_of_attributes_come_through():
    """Nothing is asked of an object by hasattr, which would hide what goes wrong, or report it as unraisable."""

    class Mask(np.ndarray):
        @property
        def mask(self):
            raise RuntimeError("not to be asked")

    class Properties:
        @property
        def data(self):
            raise RuntimeError("broken")

        scale = __dlpack__ = data

    seen = []
    before, sys.unraisablehook = sys.unraisablehook, seen.append
    try:
        arguments = cases.Case().arguments(np.float32)
        expected = gqa.attention(**arguments)
        assert_same_bits(np.asarray(gqa.attention(**arguments | {"q": arguments["q"].view(Mask)})), expected)
        with pytest.raises((RuntimeError, ValueError), match="k"):
            gqa.attention(**arguments | {"k": Properties()})
    finally:
        sys.unraisablehook = before
    assert seen == []
