"""The public API is what docs/public_api.txt lists: nothing disappears, and nothing becomes public, unnoticed."""

import pytest

import public_api
from public_api import FILE, MODULES, section, written_sections

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="needs the sources")

WHAT_TO_DO = """
If a name or parameter is new: run `python tests/support/public_api.py`, commit docs/public_api.txt, and tell users in
CHANGELOG.md. If one is gone or renamed: docs/stability.md asks for a deprecation first."""


@pytest.mark.parametrize("module", MODULES)
def test_the_list_is_the_package(module):
    lines = section(module)
    if lines is None:
        pytest.skip("its library is not installed")
    listed = written_sections().get(module, [])
    new, gone = [x for x in lines if x not in listed], [x for x in listed if x not in lines]
    assert not new, f"not in docs/public_api.txt: {new}{WHAT_TO_DO}"
    assert not gone, f"no longer in {module}: {gone}{WHAT_TO_DO}"
    assert listed == lines, "the order differs: run `python tests/support/public_api.py`"


def test_every_listed_module_is_checked():
    assert set(written_sections()) <= set(MODULES)


def test_what_is_described():
    """Classes with their methods and properties, named tuples with their fields, functions with their defaults."""

    class Thing:
        def __init__(self, size, *, dtype="float32"): ...

        @property
        def nbytes(self): ...

        def append(self, k: int, /, v=None, *rest, **more) -> int: ...

        def _private(self): ...

    assert list(public_api.lines_of("Thing", Thing)) == [
        "class Thing(size, *, dtype='float32')",
        "    append(self, k, /, v=None, *rest, **more)",
        "    nbytes",
    ]
    assert list(public_api.lines_of("NUMBER", 3)) == ["NUMBER"]
