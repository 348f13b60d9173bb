"""Builds the site: `python -m sphinx -W --keep-going -b html docs build/site` (extra `docs`, and gqa itself).

Pages are Markdown (MyST). Plots (`.. plot::`) run at build time, one namespace to a page; blocks of Python run in the
tests. The reference is made from public_api.txt, so whatever is public is in it.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from itertools import takewhile
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests/support"))

import gqa  # noqa: E402
from public_api import written_sections  # noqa: E402

project = "gqa"
author = "the gqa developers"
copyright = "2026, the gqa developers"
version = release = gqa.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

plot_include_source = True
plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("svg", 100)]
plot_rcparams = {
    "figure.figsize": (7, 3),
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "image.cmap": "viridis",
}
plot_apply_rcparams = True
plot_pre_code = "import numpy as np\nimport matplotlib.pyplot as plt\n"
plot_working_directory = str(HERE)

html_theme = "furo"
html_title = f"gqa {release}"
html_static_path: list[str] = ["static"]
html_css_files = ["gqa.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def write_reference() -> None:
    """A page for each public module that can be imported here, from the list of public names."""
    folder = HERE / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pages = []
    for module_name, lines in written_sections().items():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError:
            continue
        pages.append(module_name)
        text = f"{module_name}\n{'=' * len(module_name)}\n\n.. currentmodule:: {module_name}\n\n"
        if doc := (module.__doc__ or "").strip():
            text += doc + "\n\n"
        for i, line in enumerate(lines):
            if line.startswith(" "):
                continue
            members = [x.strip().partition("(")[0] for x in takewhile(lambda x: x.startswith(" "), lines[i + 1 :])]
            name = line.removeprefix("class ").partition("(")[0]
            if line.startswith("class "):
                text += f".. autoclass:: {module_name}.{name}\n   :members: {', '.join(members)}\n\n"
            elif "(" in line:
                text += f".. autofunction:: {module_name}.{name}\n\n"
            else:
                text += f".. py:data:: {module_name}.{name}\n   :no-index:\n\n   {getattr(module, name)}\n\n"
        (folder / f"{module_name}.rst").write_text(text)
    listed = "\n".join(f"   {name}" for name in pages)
    title = "Reference\n=========\n\nEverything public, module by module.\n\n.. toctree::\n   :maxdepth: 1\n\n"
    (folder / "index.rst").write_text(f"{title}{listed}\n")


def add_other_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts every page that the start page does not name where it says so."""
    if page == "index":
        named = set(source[0].split())
        other = sorted(x.stem for x in HERE.glob("*.md") if x.stem not in named and x.stem != "index")
        source[0] = source[0].replace("%OTHER-PAGES%", "\n".join(other))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_other_pages)


write_reference()
