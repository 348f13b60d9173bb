"""The public API as text: a line for each name, method, property and parameter list of the public modules."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator

import gqa
from repository import ROOT

FILE = ROOT / "docs/public_api.txt"
# Those after the first three import a library of their own, which may not be there.
MODULES = ("gqa", "gqa.nn", "gqa.onnx", "gqa.jax", "gqa.torch", "gqa.transformers", "gqa.distributed")


def public_names(module: object) -> list[str]:
    """What a module lists as its own: not the submodules, which have sections of their own."""
    names = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
    return sorted(name for name in names if not inspect.ismodule(getattr(module, name)))


def parameters(function: object) -> str:
    """The parameter list without types, which are the type checkers' business."""
    try:
        signature = inspect.signature(function)  # type: ignore[arg-type]
    except ValueError:
        return "(...)"
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def own_members(kind: type) -> set[str]:
    """The names in a class and in those private ones of gqa that it is made from, up to the first public one."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base is not kind and (not base.__module__.startswith("gqa") or getattr(gqa, base.__name__, None) is base):
            break
        names.update(vars(base))
    return names


def lines_of(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        fields = getattr(value, "_fields", ())
        yield f"class {name}{'(' + ', '.join(fields) + ')' if fields else parameters(value)}"
        for member in sorted(own_members(value)):
            if (member.startswith("_") and member != "__call__") or member in fields:
                continue
            attribute = inspect.getattr_static(value, member)
            if isinstance(attribute, property):
                yield f"    {member}"
            elif callable(attribute) or isinstance(attribute, (classmethod, staticmethod)):
                yield f"    {member}{parameters(getattr(value, member))}"
    elif callable(value):
        yield f"{name}{parameters(value)}"
    else:
        yield name


def section(module_name: str) -> list[str] | None:
    """The lines of one module; None where the library that it needs is not installed."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        return None
    return [line for name in public_names(module) for line in lines_of(name, getattr(module, name))]


def written_sections() -> dict[str, list[str]]:
    """The sections of the file, by module."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in FILE.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return sections


def write() -> None:
    """Write the file anew; sections of libraries that are not here stay."""
    before = written_sections() if FILE.exists() else {}
    text = (
        "# The public API. Written by `python tests/support/public_api.py`; docs/stability.md says what it promises.\n"
    )
    for module_name in MODULES:
        lines = section(module_name)
        if lines is None:
            lines = before.get(module_name)
        if lines is not None:
            text += "\n".join(["", f"[{module_name}]", *lines]) + "\n"
    FILE.write_text(text)


if __name__ == "__main__":
    write()
    sys.stdout.write(f"wrote {FILE}\n")
