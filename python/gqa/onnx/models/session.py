"""A model that is kept, and the outputs of one run that are inputs of the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gqa.arguments import AnyArray, Array
from gqa.onnx.models.running import check_threads, need_onnx

if TYPE_CHECKING:
    import onnx


class Session:
    """An ONNX model made ready once, for many runs: :func:`gqa.onnx.run` reads it anew each time.

    Parameters
    ----------
    model : str, os.PathLike, bytes or onnx.ModelProto
        A file, the content of one, or a model. It must not be changed afterwards.
    bindings : dict of str to str, optional
        Input by output: what the run before gave as that output is that input, unless another array is given. A present
        bound to its past is a cache, and GroupQueryAttention appends to it in place as long as it has room: the
        arrays that :meth:`run` returns for bound outputs are those of the session, and change with the next run.
        Arrays that are given are never written.
    num_threads : int, optional
        For each call of an attention operator, as in :func:`gqa.attention`.

    Raises
    ------
    ModuleNotFoundError
        Without the package onnx.
    OSError
        For a file that cannot be opened.
    TypeError, ValueError
        For a file that is no ONNX model, an operator that cannot be run, bindings of what the model does not have.

    Examples
    --------
    >>> import gqa.onnx, numpy as np, onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 10, opset_import: ["": 23]>
    ...     g (float[1, 2, 1, 4] x, float[1, 2, P, 4] k, float[1, 2, P, 4] v) => (float y, float new_k, float new_v)
    ...     { y, new_k, new_v = Attention(x, x, x, , k, v) }
    ... ''')
    >>> session = gqa.onnx.Session(model, bindings={"new_k": "k", "new_v": "v"})
    >>> x, empty = np.ones((1, 2, 1, 4), np.float32), np.ones((1, 2, 0, 4), np.float32)
    >>> session.run({"x": x, "k": empty, "v": empty})["new_k"].shape
    (1, 2, 1, 4)
    >>> session.run({"x": x})["new_k"].shape
    (1, 2, 2, 4)
    """

    def __init__(
        self, model: Any, *, bindings: Mapping[str, str] | None = None, num_threads: int | None = None
    ) -> None:
        num_threads = check_threads(num_threads)
        need_onnx()
        from gqa.onnx.models import loading

        self._loading = loading
        self._model = loading.load(model)
        self._in_place: dict[int, Array] = {}
        self._evaluator = loading.evaluator_of(self._model, num_threads, self._in_place)
        self._bindings = dict(bindings or {})
        self._bound: dict[str, Array] = {}
        inputs, outputs = ([x.name for x in part] for part in (self._model.graph.input, self._model.graph.output))
        for output, name in self._bindings.items():
            if output not in outputs:
                raise ValueError(f"the model has no output {output!r}, expected {', '.join(outputs)}")
            if name not in inputs:
                raise ValueError(f"the model has no input {name!r}, expected {', '.join(inputs)}")
        if len(set(self._bindings.values())) < len(self._bindings):
            raise ValueError("bindings give an input two outputs")
        self._caches = caches_of(self._model.graph, self._bindings)

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, Array]:
        """Run the model.

        Parameters
        ----------
        inputs : dict of str to ndarray
            By name, of the dtypes and shapes that the model declares; bound ones only where the session has none yet,
            or begins anew.

        Returns
        -------
        dict of str to ndarray
            The model's outputs by name.

        Raises
        ------
        TypeError
            For an input of a wrong type or dtype.
        ValueError
            For missing or unknown inputs, or a shape that does not fit.
        """
        arrays = self._loading.checked_inputs(self._model, {**self._bound, **inputs})
        kept = [arrays[name] for name in self._caches if name in arrays and arrays[name] is self._bound.get(name)]
        self._in_place.clear()
        self._in_place.update((id(x), x) for x in kept)
        outputs = self._loading.outputs_of(self._evaluator, arrays)
        given = {id(arrays[name]) for name in inputs}
        self._bound = {
            name: outputs[output].copy() if id(outputs[output]) in given else outputs[output]
            for output, name in self._bindings.items()
        }
        return outputs


def caches_of(graph: onnx.GraphProto, bindings: Mapping[str, str]) -> list[str]:
    """Inputs that one GroupQueryAttention alone reads, as the past of a present that is bound to it."""
    from gqa.onnx.models.graphs import names_used

    readers = names_used(graph)
    return [
        node.input[past]
        for node in graph.node
        if (node.op_type, node.domain) == ("GroupQueryAttention", "com.microsoft") and len(node.input) > 4
        for past, present in ((3, 1), (4, 2))
        if present < len(node.output)
        and bindings.get(node.output[present], "") == node.input[past] != ""
        and readers.count(node.input[past]) == 1
    ]
