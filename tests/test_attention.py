"""The table of cases against the oracle: instruction sets, element types, layouts, threads."""

import numpy as np
import pytest

import cases
import gqa
import oracle
from compare import assert_close, assert_lse_close
from conftest import DTYPES


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_case(case, isa, dtype):
    for layout in ("bhsd", "bshd"):
        out, lse = gqa.attention(**case.arguments(dtype, layout), return_lse=True)
        expected_out, expected_lse = case.expected(dtype, layout)
        assert out.dtype == dtype
        assert lse.dtype == (np.float64 if dtype is np.float64 else np.float32)
        assert_close(out, expected_out)
        assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("case", cases.LONG, ids=str)
def test_long_case(case, isa, dtype, threads):
    out, lse = gqa.attention(**case.arguments(dtype), return_lse=True, num_threads=threads)
    expected_out, expected_lse = case.expected(dtype)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("options", [(), ("past", "bool_mask", "sinks")], ids=str)
@pytest.mark.parametrize("queries", [1, 11])
@pytest.mark.parametrize("k_dtype", DTYPES.values())
def test_tensors_of_different_dtypes(isa, dtype, k_dtype, queries, options):
    for past_dtype in DTYPES.values() if "past" in options else (dtype,):
        arguments = cases.Case(queries=queries, keys=210, options=options).arguments(np.float64)
        dtypes = {"q": dtype, "k": k_dtype, "v": dtype, "past_key": past_dtype, "past_value": k_dtype}
        arguments |= {name: arguments[name].astype(dtypes[name]) for name in dtypes if name in arguments}
        out, lse = gqa.attention(**arguments, return_lse=True)
        expected_out, expected_lse = oracle.attention(**arguments)
        assert out.dtype == dtype
        assert lse.dtype == (np.float64 if np.float64 in (dtype, k_dtype, past_dtype) else np.float32)
        assert_close(out, expected_out)
        assert_lse_close(lse, expected_lse)
