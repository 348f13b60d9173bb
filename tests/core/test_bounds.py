"""Nothing is read or written beside the arrays, and masked keys are not read: memory there is out of bounds here."""

import pytest

from axes import DTYPES
from child import output_of


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_access_beside_the_arrays(isa, dtype):
    done = output_of(
        """
        import itertools, sys
        import gqa, numpy as np
        from cases import ALL_ARRAYS
        from compare import assert_same_bits, naming
        from axes import DTYPES
        from guarded import guard, guarded, pages

        dtype = DTYPES[sys.argv[1]]
        for case, at_end in itertools.product(ALL_ARRAYS, (False, True)):
            with naming(case):
                print(case, file=sys.stderr, flush=True)  # for a crash
                arguments = case.arguments(dtype)
                expected, expected_lse = gqa.attention(**arguments, return_lse=True)
                out = guarded(np.empty_like(expected), at_end, writable=True)
                _, lse = gqa.attention(**guard(arguments, at_end), out=out, return_lse=True)
                assert_same_bits(out, expected)
                assert_same_bits(lse, expected_lse)
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
        import cases, gqa, numpy as np
        from compare import assert_same_bits, naming
        from guarded import guard, pages

        sizes = itertools.product((1, 3, 7, 40), (1, 15, 17, 97, 300), (1, 7, 8, 33, 64))
        for dtype, (queries, keys, head_dim) in itertools.product(("f4", "f2", "i1"), sizes):
            case = cases.Case(queries=queries, keys=keys, head_dim=head_dim, v_head_dim=head_dim, options=("past",))
            arguments = case.arguments(np.float32)
            for name in ("past_key", "past_value"):
                arguments[name] = gqa.quantize(arguments[name])
            for name in ("k", "v"):
                arguments[name] = gqa.quantize(arguments[name]) if dtype == "i1" else arguments[name].astype(dtype)
            expected = gqa.attention(**arguments)
            for at_end in (False, True):
                with naming(dtype, case):
                    assert_same_bits(gqa.attention(**guard(arguments, at_end)), expected)
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
