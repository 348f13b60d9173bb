"""Layers with parameters: a linear map from some axes to others, and layer normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gqa.arguments import Array, as_array
from gqa.dtypes import compute_dtype, require_float
from gqa.nn.gradients import ParameterGradients, Pullback
from gqa.shapes import Shape, check_shape


class Layer:
    """Parameters are attributes, free to be assigned; a call checks their shapes."""

    def __init__(self, name: str, dtype: np.dtype[Any], shapes: dict[str, Shape]) -> None:
        self.name, self.dtype, self.shapes = name, dtype, shapes

    def parameter(self, name: str) -> Array:
        """The parameter of that name; ValueError if it has been given another shape."""
        x = as_array(f"{self.name}.{name}", getattr(self, name))
        check_shape(f"{self.name}.{name}", x.shape, self.shapes[name])
        return x

    def read(self, state: Any) -> dict[str, Array]:
        """Copies of all parameters in a mapping, converted; nothing is assigned."""
        check_keys(self.name, state, self.shapes)
        read = {}
        for name, shape in self.shapes.items():
            parameter, given = f"{self.name}.{name}", state[name]
            x = as_array(parameter, given) if hasattr(given, "__dlpack__") else np.asarray(given)
            require_float(parameter, x.dtype.name)
            check_shape(parameter, x.shape, shape)
            read[name] = x.astype(self.dtype)
        return read


class Linear(Layer):
    """x @ kernel + bias, with kernel (*inputs, *outputs) and bias (*outputs,) or None."""

    def __init__(
        self,
        name: str,
        inputs: Shape,
        outputs: Shape,
        *,
        use_bias: bool,
        dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> None:
        super().__init__(name, dtype, {"kernel": inputs + outputs} | ({"bias": outputs} if use_bias else {}))
        self.inputs, self.outputs = inputs, outputs
        kernel = rng.standard_normal(inputs + outputs) / math.sqrt(math.prod(inputs))
        self.kernel: Array = kernel.astype(dtype)
        self.bias: Array | None = np.zeros(outputs, dtype) if use_bias else None

    def __call__(self, x: Array) -> Array:
        """x (batch, tokens, *inputs) to (batch, tokens, *outputs) by one matrix product, rounded once."""
        y = self._rows(x) @ self._matrix()
        if "bias" in self.shapes:
            y += self.parameter("bias").reshape(y.shape[1])
        return y.astype(self.dtype, copy=False).reshape(*x.shape[:2], *self.outputs)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """What a call gives, and its pullback, which gives the gradient by x unrounded."""
        rows, matrix = self._rows(x), self._matrix()

        def pullback(dy: Array) -> tuple[Array, ParameterGradients]:
            dy = dy.astype(matrix.dtype, copy=False).reshape(len(rows), matrix.shape[1])
            gradients = {"kernel": rows.T @ dy} | ({"bias": dy.sum(0)} if "bias" in self.shapes else {})
            by_name = {n: g.reshape(self.shapes[n]).astype(self.dtype, copy=False) for n, g in gradients.items()}
            return (dy @ matrix.T).reshape(x.shape), {self.name: by_name}

        return self(x), pullback

    def _rows(self, x: Array) -> Array:
        """x (batch, tokens, *inputs) as a matrix, in the type that products are computed in."""
        wide = compute_dtype(self.dtype.name)
        x = x.astype(self.dtype, copy=False).astype(wide, copy=False)
        return x.reshape(math.prod(x.shape[:2]), math.prod(self.inputs))

    def _matrix(self) -> Array:
        kernel = self.parameter("kernel").reshape(math.prod(self.inputs), math.prod(self.outputs))
        return kernel.astype(compute_dtype(self.dtype.name), copy=False)


class LayerNorm(Layer):
    """(x - mean) / sqrt(variance + 1e-6) * scale over the last axis, with scale (channels,)."""

    def __init__(self, name: str, channels: int, *, dtype: np.dtype[Any]) -> None:
        super().__init__(name, dtype, {"scale": (channels,)})
        self.scale: Array = np.ones(channels, dtype)

    def __call__(self, x: Array) -> Array:
        """x (..., channels) to the same shape, rounded once."""
        x, factor = self._normalised(x)
        x *= self.parameter("scale") * factor
        return x.astype(self.dtype, copy=False)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """What a call gives, and its pullback, which gives the gradient by x unrounded."""
        centred, factor = self._normalised(x)
        normalised = centred * factor
        scale = self.parameter("scale").astype(normalised.dtype, copy=False)

        def pullback(dy: Array) -> tuple[Array, ParameterGradients]:
            dy = dy.astype(normalised.dtype, copy=False)
            by_scale = (dy * normalised).sum(tuple(range(dy.ndim - 1)))
            dx = dy * scale
            # Neither the mean of x nor its size matters: the gradient has no part along either.
            dx -= dx.mean(-1, keepdims=True) + normalised * (dx * normalised).mean(-1, keepdims=True)
            return dx * factor, {self.name: {"scale": by_scale.astype(self.dtype, copy=False)}}

        return self(x), pullback

    def _normalised(self, x: Array) -> tuple[Array, Array]:
        """x less its mean, a new array, and what makes its variance 1, (..., 1)."""
        x = x.astype(compute_dtype(self.dtype.name), copy=False)
        x = x - x.mean(-1, keepdims=True)
        return x, 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def check_keys(name: str, given: Any, expected: Any) -> None:
    """Raise unless `given` is a mapping with exactly the expected keys."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a dict")
    names = ", ".join(map(repr, expected))
    for key in expected:
        if key not in given:
            raise ValueError(f"{name} has no {key!r}, expected {names}")
    for key in given:
        if key not in expected:
            raise ValueError(f"{name} has an unknown {key!r}, expected {names}")
