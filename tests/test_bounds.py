"""Nothing is read or written beside the arrays, and masked keys are not read: memory there is out of bounds here."""

import pytest

import cases
from child import output_of
from conftest import DTYPES

# The table without its repetitions: every size, and the options that bring arrays of their own.
SIZES = (*cases.HEADS, *cases.HEAD_DIMS, *cases.ROWS, *cases.KEYS, *cases.EMPTY)
ARRAYS = {"past", "bool_mask", "float_mask", "sinks", "lengths"}
OPTIONS = [case for case in cases.WITH_OPTIONS if len(case.options) == 1 or ARRAYS.issuperset(case.options)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_access_beside_the_arrays(isa, dtype):
    done = output_of(
        """
        import sys
        import cases, gqa, numpy as np, test_bounds
        from compare import assert_close, assert_lse_close
        from conftest import DTYPES
        from guarded import guarded, pages

        dtype, at_ends = DTYPES[sys.argv[1]], (False, True)
        for case in (*test_bounds.SIZES, *test_bounds.OPTIONS):
            print(case, file=sys.stderr)
            for at_end in at_ends:
                arguments = case.arguments(dtype)
                expected_out, expected_lse = case.expected(dtype)
                arguments = {name: guarded(x, at_end) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
                out = guarded(np.empty(expected_out.shape, dtype), at_end, writable=True)
                _, lse = gqa.attention(**arguments, out=out, return_lse=True)
                assert_close(out, expected_out)
                assert_lse_close(lse, expected_lse)
                pages.clear()
        print("done")
        """,
        dtype,
        GQA_ISA=isa,
    )
    assert done == "done"


def test_no_access_beside_quantised_and_mixed_arrays(isa):
    done = output_of(
        """
        import itertools
        import cases, gqa, numpy as np, oracle
        from compare import assert_close
        from guarded import guarded, pages

        def guard(x, at_end):
            if isinstance(x, gqa.Quantized):
                return gqa.Quantized(guarded(x.data, at_end), guarded(x.scale, at_end))
            return guarded(x, at_end) if isinstance(x, np.ndarray) else x

        for dtype, queries, keys, head_dim in itertools.product(("f4", "f2", "i1"), (1, 3, 7, 40), (1, 15, 17, 97, 300), (1, 7, 8, 33, 64)):
            case = cases.Case(queries=queries, keys=keys, head_dim=head_dim, v_head_dim=head_dim, options=("past",))
            arguments = case.arguments(np.float32)
            arguments |= {name: gqa.quantize(arguments[name]) for name in ("past_key", "past_value")}
            arguments |= {name: gqa.quantize(arguments[name]) if dtype == "i1" else arguments[name].astype(dtype) for name in ("k", "v")}
            expected, _ = oracle.attention(**arguments)
            for at_end in (False, True):
                inputs = {name: guard(x, at_end) for name, x in arguments.items()}
                assert_close(gqa.attention(**inputs), expected)
                pages.clear()
        print("done")
        """,
        GQA_ISA=isa,
    )
    assert done == "done"


def test_keys_past_a_length_are_never_read(isa):
    done = output_of(
        """
        import gqa, numpy as np
        from compare import assert_same_bits
        from guarded import guarded_tail

        rng = np.random.default_rng(0)
        k, v = rng.standard_normal((2, 1, 1, 2048, 64), np.float32)
        hidden_k, hidden_v = guarded_tail(k, 2, 64), guarded_tail(v, 2, 64)
        for queries in (1, 4, 33):
            q = rng.standard_normal((1, 4, queries, 64), np.float32)
            for options in ({}, {"causal": True, "query_offset": 60}, {"window": (9, 9)}):
                expected = gqa.attention(q, k, v, kv_lengths=[64], **options)
                assert_same_bits(gqa.attention(q, hidden_k, hidden_v, kv_lengths=[64], **options), expected)
        print("done")
        """,
        GQA_ISA=isa,
    )
    assert done == "done"


@pytest.mark.parametrize("queries", [1, 20])
def test_no_channels_at_all(isa, queries):
    case = cases.Case(queries=queries, head_dim=0, v_head_dim=0)
    code = "import sys, gqa, numpy as np; s = eval(sys.argv[1]); k = np.empty(s[1], 'f4'); print(gqa.attention(np.empty(s[0], 'f4'), k, k).shape)"
    q, k = case.arguments("f4")["q"].shape, case.arguments("f4")["k"].shape
    assert output_of(code, (q, k), GQA_ISA=isa) == str(q)
