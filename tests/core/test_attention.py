"""The table of cases against the oracle: instruction sets, element types, layouts, threads."""

import numpy as np
import pytest

import cases
import gqa
import oracle
from axes import DTYPES
from compare import assert_close, assert_lse_close, naming


def check(case, dtype, layout, threads):
    with naming(layout, f"{threads} threads"):
        out, lse = gqa.attention(**case.arguments(dtype, layout), return_lse=True, num_threads=threads)
        expected_out, expected_lse = case.expected(dtype, layout)
        assert out.dtype == dtype
        assert lse.dtype == (np.float64 if dtype is np.float64 else np.float32)
        assert_close(out, expected_out)
        assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("case", cases.TABLE, ids=str)
def test_case(case, isa, dtype):
    check(case, dtype, "bhsd", threads=1)
    check(case, dtype, "bshd", threads=2)


@pytest.mark.parametrize("case", cases.LONG, ids=str)
def test_long_case(case, isa, dtype):
    for threads in (1, 2, 5):
        check(case, dtype, "bhsd", threads)
    check(case, dtype, "bshd", threads=3)


def test_no_case_is_in_the_table_twice():
    names = [str(case) for case in cases.TABLE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("queries", [1, 13])
@pytest.mark.parametrize("past_dtype", [None, *DTYPES])
@pytest.mark.parametrize("k_dtype", DTYPES)
def test_tensors_of_different_dtypes(isa, dtype, k_dtype, past_dtype, queries):
    options = () if past_dtype is None else ("past", "bool_mask", "sinks")
    arguments = cases.Case(queries=queries, keys=210, options=options).arguments(np.float64)
    dtypes = {"q": dtype, "k": DTYPES[k_dtype], "v": dtype}
    if past_dtype is not None:
        dtypes |= {"past_key": DTYPES[past_dtype], "past_value": DTYPES[k_dtype]}
    arguments |= {name: arguments[name].astype(dtypes[name]) for name in dtypes}
    out, lse = gqa.attention(**arguments, return_lse=True)
    expected_out, expected_lse = oracle.attention(**arguments)
    assert out.dtype == dtype
    assert lse.dtype == (np.float64 if np.float64 in dtypes.values() else np.float32)
    assert_close(out, expected_out)
    assert_lse_close(lse, expected_lse)
