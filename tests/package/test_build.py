"""What the build must keep to: the kernels of different instruction sets share no code, and the package stays light."""

import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import gqa
from child import output_of
from gqa import _core
from repository import ROOT

KERNELS = ROOT / "csrc/kernels/kernel.cpp"
EXTENSION = Path(_core.__file__)


needs_nm = pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")


def symbols(path):
    """(kind, name) of the symbols of an object or a library, kinds as nm's: capital for global, W, V, u for weak."""
    listing = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
    return [match.groups() for match in re.finditer(r"^[0-9a-f ]{16} (\w) (.*)$", listing, re.MULTILINE)]


def flags():
    """The compiler flags of each instruction set of x86, from CMakeLists.txt."""
    rows = re.findall(r"set\(features_(\w+) ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    return {isa: ["-mno-mmx", *(f"-m{name}" for name in names.split())] for isa, names in rows if names != "portable"}


def sources():
    """What each instruction set compiles: a source of its own, if it adds to another one."""
    own = dict(re.findall(r"set\(source_(\w+) ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text()))
    return {isa: KERNELS.parent / own.get(isa, "kernel.cpp") for isa in flags()}


@needs_nm
@pytest.mark.skipif(not KERNELS.exists(), reason="needs the sources")
@pytest.mark.parametrize("isa", flags() if KERNELS.exists() else [])
def test_a_kernel_object_shares_nothing(isa, tmp_path):
    """Its one symbol for others is `kernels`. Compiled without optimisation, so that inlining hides nothing.

    Of a weak symbol, such as an inline function of the standard library, the linker keeps one copy for everybody: it
    may be the one compiled for an instruction set that this machine lacks.
    """
    compiler = shutil.which("c++") or shutil.which("clang++") or pytest.skip("needs a C++ compiler")
    target = tmp_path / "kernel.o"
    options = ["-std=c++17", "-O0", "-fno-exceptions", "-fno-rtti", f"-DGQA_ISA={isa}", *flags()[isa]]
    command = [compiler, *options, "-c", sources()[isa], "-o", target]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode != 0 and "unrecognized" in compiled.stderr:
        pytest.skip("another processor's compiler")
    assert compiled.returncode == 0, compiled.stderr
    shared = [name for kind, name in symbols(target) if kind != "U" and (kind.isupper() or kind == "u")]
    assert shared == [f"gqa::{isa}::kernels"]


@needs_nm
def test_the_library_holds_no_shared_kernel_code():
    found = symbols(EXTENSION)
    kernels = [(kind, name) for kind, name in found if re.search(r"gqa::(avx|baseline)", name)]
    if not kernels:
        pytest.skip("the library is stripped")
    assert [name for kind, name in kernels if kind in "WVu"] == []
    constants = {name for _, name in kernels if name.endswith("::kernels")}
    assert constants >= {f"gqa::{isa}::kernels" for isa in _core.available_isas()}


def test_the_library_is_small():
    """Compressed, as it is in a wheel."""
    assert len(zlib.compress(EXTENSION.read_bytes())) < 1.6e6


def test_the_import_brings_numpy_and_the_standard_library_alone():
    added = output_of(
        """
        import sys, numpy
        before = set(sys.modules)
        import gqa
        print(*sorted(set(sys.modules) - before))
        """
    ).split()
    roots = {name.split(".")[0] for name in added}
    assert roots <= {"gqa", "numpy", *sys.stdlib_module_names}
    assert not [name for name in added if name.startswith(("gqa.nn", "gqa.onnx"))]
    heavy = {
        "asyncio",
        "ctypes",
        "email",
        "http",
        "importlib.metadata",
        "inspect",
        "json",
        "logging",
        "multiprocessing",
    }
    assert not heavy.intersection(added)


def test_all_public_names_exist_and_are_documented():
    for name in gqa.__all__:
        assert getattr(gqa, name).__doc__


def test_the_stub_lists_the_extension():
    stub = Path(gqa.__file__).with_name("_core.pyi")
    declared = set(re.findall(r"^(?:def |class )?(\w+)[(:]", stub.read_text(), re.MULTILINE))
    assert declared - {"from"} == {name for name in dir(_core) if not name.startswith("__")} | {"__version__"}
