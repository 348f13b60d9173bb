"""In an interpreter that is not the main one gqa cannot be imported, and says so."""

import pytest

from child import output_of


def test_the_import_is_an_error_in_a_sub_interpreter():
    for name in ("_interpreters", "_xxsubinterpreters"):  # the module of Python 3.13, and of versions before
        try:
            __import__(name)
            break
        except ImportError:
            continue
    else:
        pytest.skip("needs sub-interpreters")
    printed = output_of(
        """
        import sys
        interpreters = __import__(sys.argv[1])
        code = '''
        import sys, warnings
        sys.path[:] = {path}
        warnings.simplefilter("ignore")  # NumPy's
        try:
            import gqa
        except ImportError as error:
            print(error)
        else:
            print("imported")
        '''.replace("\\n        ", "\\n").format(path=sys.path)
        interpreters.run_string(interpreters.create(), code)
        """,
        name,
    )
    # NumPy, which comes first, may be the one to refuse.
    assert "gqa cannot be imported in a sub-interpreter" in printed or "numpy" in printed
