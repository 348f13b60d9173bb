"""The modules of the package: what users see of them, how they import each other."""

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import gqa

PUBLIC = ("gqa", "gqa.distributed", "gqa.jax", "gqa.nn", "gqa.onnx", "gqa.torch", "gqa.transformers")
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(gqa.__path__, "gqa.") if not module.name.endswith("__main__")
)


def imported(name: str) -> ModuleType:
    if name.startswith("gqa.onnx.models."):
        pytest.importorskip("onnx")
    if name.startswith("gqa.jax"):
        pytest.importorskip("jax")
    if name.startswith(("gqa.torch", "gqa.transformers")):
        pytest.importorskip("torch")
    if name.startswith("gqa.transformers"):
        pytest.importorskip("transformers")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_hides_behind_a_function(name):
    """`import a.b as m` takes the attribute b of a, which a function of that name would replace."""
    module = imported(name)
    parent, _, leaf = name.rpartition(".")
    assert getattr(importlib.import_module(parent), leaf) is module


@pytest.mark.parametrize("name", PUBLIC)
def test_dir_lists_the_public_names(name):
    module = imported(name)
    submodules = {"nn", "onnx"} if name == "gqa" else set()
    assert {x for x in dir(module) if not x.startswith("__")} == set(module.__all__) | submodules
    assert all(hasattr(module, x) for x in dir(module))
    assert {"__all__", "__doc__", "__name__"} <= set(dir(module))


def test_modules_import_each_other_in_no_circle():
    """Imports within functions count."""
    imports = {name: set(imports_of(name)) for name in MODULES}
    done: set[str] = set()
    while ready := [name for name in imports if name not in done and imports[name] <= done]:
        done.update(ready)
    assert sorted(set(imports) - done) == []


def imports_of(name: str) -> list[str]:
    """The modules of the package that a module imports anywhere, other than its own package."""
    spec = importlib.util.find_spec(name)
    if not spec.origin.endswith(".py"):
        return []
    found = []
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [x for x in found if x in MODULES]
