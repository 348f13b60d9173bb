"""release_notes.py VERSION [REPOSITORY]: prints CHANGELOG.md's section of a version, as the notes of its release.

Exit status 1, with the reason, if there is no such section, if pyproject.toml or CITATION.cff says another version, or
if pyproject.toml's URLs are not those of the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def notes_of(version: str, changelog: str) -> str:
    """The text of a version's section; empty if there is none."""
    sections = re.split(r"^## \[(.+?)\].*\n", changelog, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2])).get(version, "").strip()


def problems(version: str, repository: str | None = None) -> list[str]:
    """What must be put right before that version can be released."""
    project, citation = (ROOT / "pyproject.toml").read_text(), (ROOT / "CITATION.cff").read_text()
    found = []
    if not notes_of(version, (ROOT / "CHANGELOG.md").read_text()):
        found.append(f"CHANGELOG.md has no section of {version}")
    if f'\nversion = "{version}"\n' not in project:
        found.append(f"pyproject.toml does not say version {version}")
    if f"\nversion: {version}\n" not in citation:
        found.append(f"CITATION.cff does not say version {version}")
    if repository and f'"https://github.com/{repository}"' not in project:
        found.append(f"the URLs in pyproject.toml are not those of {repository}")
    return found


def main(arguments: list[str]) -> int:
    if found := problems(*arguments):
        print(*found, sep="\n", file=sys.stderr)
        return 1
    print(notes_of(arguments[0], (ROOT / "CHANGELOG.md").read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
