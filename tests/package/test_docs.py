"""What the documentation shows runs: code of its pages, every docstring's example; what its shell lines name exists."""

import doctest
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import shlex

import pytest

import gqa
import gqa.distributed
import gqa.nn
import gqa.onnx
from repository import ROOT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "fuzz/README.md",
    "SECURITY.md",
    *(str(x.relative_to(ROOT)) for x in sorted((ROOT / "docs").rglob("*.md"))),
]
PUBLIC = [(module, name) for module in (gqa, gqa.distributed, gqa.nn, gqa.onnx) for name in module.__all__]
for library in ("torch", "transformers"):
    if importlib.util.find_spec(library):
        adapter = importlib.import_module(f"gqa.{library}")
        PUBLIC += [(adapter, name) for name in adapter.__all__]
COMMANDS = {"pytest", "ruff", "mypy", "pyright", "clang-format", ".", "cmake", "cp", "export"}
PRESETS = {preset["name"] for preset in json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]}


def libraries(code):
    """Of those that the tests do without, the ones that some code imports."""
    return [
        x
        for line in re.findall(r"import gqa\..*|from mpi4py.*", code)
        for x in re.findall(r"\b(?<!\.)(jax|torch|transformers|mpi4py)", line)
    ]


def blocks(page, language):
    """(line, text) of the blocks of a page in a language; the line is that of the text's first."""
    text = (ROOT / page).read_text()
    for block in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start()) + 2, block[1]


# ---- docstrings ----------------------------------------------------------------------------------------------------


def examples():
    """The examples of every docstring of the package, by module and object."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [module.name for module in pkgutil.walk_packages(gqa.__path__, "gqa.")]
    for name in ["gqa", *(name for name in names if not name.endswith("__main__"))]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:  # what needs onnx, JAX or PyTorch
            continue
        yield from (example for example in finder.find(module, name) if example.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_an_example(example):
    if "onnx.parser" in example.docstring:
        pytest.importorskip("onnx.parser")
    for library in libraries(example.docstring):
        pytest.importorskip(library)
    report = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_whatever_can_be_called_has_an_example(module, name):
    x = getattr(module, name)
    assert inspect.getdoc(x)
    if callable(x) and not (isinstance(x, type) and issubclass(x, tuple)):
        assert ">>> " in inspect.getdoc(x)


# ---- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))])
def test_the_code_of_a_page(page):
    """All blocks in order, in one namespace; an error shows the line of the page."""
    namespace = {}
    for line, code in blocks(page, "python"):
        if any(importlib.util.find_spec(library) is None for library in libraries(code)):
            continue
        exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), namespace)


def shell_lines():
    for page in PAGES:
        for line, block in blocks(page, "sh"):
            for number, text in enumerate(block.replace("\\\n", " ").splitlines(), line):
                for command in text.split("&&"):
                    yield pytest.param(shlex.split(command, comments=True), id=f"{page}:{number}: {command.strip()}")


@pytest.mark.parametrize("words", list(shell_lines()))
def test_what_a_shell_line_names_exists(words):
    match words:
        case ["pip", "install", *rest]:
            named = set(re.findall(r"\w+", ",".join(re.findall(r"\.\[(.*?)\]", " ".join(rest)))))
            tables = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
            assert named <= set(re.findall(r"^(\w+) = ", tables.partition("\n\n")[0], re.MULTILINE))
        case ["python", "-m", module, *_]:
            assert module in ("gqa", "sphinx", "venv")
        case ["python", script, *rest]:
            source = (ROOT / script).read_text()
            assert all(f'"{word}"' in source for word in rest if word.startswith("--"))
        case ["cmake", *rest]:
            assert set(rest[rest.index("--preset") + 1 :]) <= PRESETS
        case [command, *_]:
            while "=" in command:  # a variable of the environment
                command, *words = words[1:]
            assert command in COMMANDS or (ROOT / command).exists() or command.startswith("build/")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page):
    """The reference is made when the site is built, which checks links to it."""
    links = re.findall(r"\]\(((?!reference/)[^)#:]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
