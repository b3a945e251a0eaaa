"""Checks the links of a built site: that each page, file and anchor in it is there.

    python .ci/links.py DIR

Links to elsewhere are checked as texts only, since nothing is fetched: a scheme and a host.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src"}


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(str(values[name]) for name in ("id", "name") if values.get(name))
        if target := values.get(LINKS.get(tag, "")):
            self.links.add(target)


def wrong(link: str, at: Path, pages: dict[Path, Page]) -> str | None:
    """What is wrong with a link on the page `at`; None: nothing."""
    parts = urlsplit(link)
    if parts.scheme == "mailto" and "@" in parts.path:
        return None
    if parts.scheme or parts.netloc:
        good = parts.scheme in ("http", "https") and "." in parts.netloc and " " not in link
        return None if good else "is no address"
    there = (at.parent / unquote(parts.path)).resolve() if parts.path else at
    if there.is_dir():
        there /= "index.html"
    if not there.is_file():
        return "leads to no file"
    page = pages.get(there)
    if parts.fragment and page and unquote(parts.fragment) not in page.anchors:
        return "leads to no anchor"
    return None


def main(folder: Path) -> int:
    pages = {path: Page(path) for path in sorted(folder.resolve().rglob("*.html"))}
    errors = [
        f"{path.relative_to(folder.resolve())}: {link} {error}"
        for path, page in pages.items()
        for link in sorted(page.links)
        if (error := wrong(link, path, pages))
    ]
    print("\n".join(errors))
    links = sum(len(page.links) for page in pages.values())
    print(f"{len(pages)} pages, {links} links, {len(errors)} wrong")
    return 1 if errors or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
