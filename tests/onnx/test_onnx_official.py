"""The node tests of onnx itself for the operators that gqa has, on every instruction set."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx.backend.test.case import node as node_tests  # noqa: E402

import gqa.onnx  # noqa: E402

COUNTS = {"Attention": 93, "FlexAttention": 11, "RotaryEmbedding": 8, "TensorScatter": 3}

# Importing a module there collects its tests. collect_testcases would import, and generate, those of every operator.
for operator in COUNTS:
    importlib.import_module(f"{node_tests.__name__}.{operator.lower()}")
CASES = [
    case
    for case in node_tests._NodeTestCases
    if case.model.graph.node[0].op_type in COUNTS
    and "_expanded" not in case.name  # onnx's own operators in place of these
]


def test_no_official_test_is_missing():
    operators = [case.model.graph.node[0].op_type for case in CASES]
    assert {operator: operators.count(operator) for operator in COUNTS} == COUNTS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_official(case, isa):
    names = [x.name for x in case.model.graph.input]
    for inputs, expected in case.data_sets:
        actual = gqa.onnx.run(case.model, dict(zip(names, inputs)))
        assert len(actual) == len(expected)
        for got, want in zip(actual.values(), expected):
            assert got.dtype == want.dtype
            rtol = max(case.rtol, 2**-6) if want.dtype.name == "bfloat16" else case.rtol
            got, want = got.astype(np.float64), want.astype(np.float64)
            np.testing.assert_allclose(got, want, rtol=rtol, atol=case.atol, strict=True)
