"""What a release needs: one version everywhere, notes in the changelog, pinned actions, files that can be read."""

import importlib.util
import re

import pytest

import gqa
from repository import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")


def release_notes():
    spec = importlib.util.spec_from_file_location("release_notes", ROOT / ".github/release_notes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_the_same_everywhere():
    assert release_notes().problems(gqa.__version__) == []


def test_notes_are_the_section_of_the_version():
    changelog = "# Changelog\n\n## [Unreleased]\n\n- new\n\n## [1.2.0] - 2030-01-01\n\n- a\n- b\n\n## [1.1.0]\n\n- c\n"
    notes_of = release_notes().notes_of
    assert notes_of("1.2.0", changelog) == "- a\n- b"
    assert notes_of("1.1.0", changelog) == "- c"
    assert notes_of("2.0.0", changelog) == ""


def test_a_release_that_is_not_ready_says_why():
    found = release_notes().problems("99.0.0", "somebody/else")
    assert [x.split(" ")[0] for x in found] == ["CHANGELOG.md", "pyproject.toml", "CITATION.cff", "the"]


def test_the_notes_on_the_command_line(capsys):
    main = release_notes().main
    assert main(["99.0.0"]) == 1
    assert "CHANGELOG.md has no section of 99.0.0" in capsys.readouterr().err
    assert main([gqa.__version__]) == 0
    assert "first release" in capsys.readouterr().out


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned(path):
    """To a commit: a tag can be moved by whoever takes over an action."""
    used = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r"  # v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_is_here(path):
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for file in re.findall(r"(?:bash|python) (\.ci/run|[\w./]+\.py)|^(fuzz/run)", step.get("run", "")):
                assert (ROOT / "".join(file)).exists()
