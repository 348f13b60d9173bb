"""links.py SITE: whether every link of a built site to itself leads somewhere: to a file, and to an anchor in it.

Links to other hosts are counted, and not followed. Exit status 1 if there is a broken one.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "id":
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


def broken_links(site: Path) -> tuple[list[str], int, int]:
    """What is broken, as lines of text; how many links lead within the site, and how many to other hosts."""
    pages = {path: Page(path) for path in sorted(site.resolve().rglob("*.html"))}
    broken, within, beyond = [], 0, 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                beyond += 1
                continue
            within += 1
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            to = to / "index.html" if to.is_dir() else to
            anchor = unquote(parts.fragment)
            if not to.exists() or (anchor and to in pages and anchor not in pages[to].anchors):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken, within, beyond


if __name__ == "__main__":
    broken, within, beyond = broken_links(Path(sys.argv[1]))
    print(*broken, f"{within} links within the site, {len(broken)} of them broken; {beyond} to other hosts", sep="\n")
    sys.exit(bool(broken))
