"""C++ of the extension in programs of their own, where a test needs what no build for Python has."""

import shutil
import subprocess

import pytest

from repository import ROOT

SOURCES = ROOT / "csrc"


def compiler():
    """A C++ compiler; skips the test where there is none, or no sources."""
    if not SOURCES.exists():
        pytest.skip("needs the sources")
    return shutil.which("c++") or shutil.which("clang++") or pytest.skip("needs a C++ compiler")


def built(folder, code, *sources, options=()):
    """A program: `code`, which may include the extension's headers, with files of csrc/."""
    main, program = folder / "main.cpp", folder / "program"
    main.write_text(code)
    files = [main, *(SOURCES / source for source in sources)]
    command = [compiler(), "-std=c++17", "-pthread", "-iquote", SOURCES, *options, *files, "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    return program


def output_of_program(folder, code, *sources, options=(), arguments=(), input=None):
    """What such a program prints for `input`."""
    return output_of_run(built(folder, code, *sources, options=options), *arguments, input=input)


def output_of_run(program, *arguments, input=None):
    command = [program, *map(str, arguments)]
    return subprocess.run(command, input=input, check=True, capture_output=True, text=True).stdout
