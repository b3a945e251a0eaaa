"""The check of the built site's links notices each kind of link that leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GOOD = [
    "other.html",
    "other.html#there",
    "#here",
    "folder/",
    "picture.png",
    "https://example.com/a?b=c#d",
    "mailto:somebody@example.com",
]
WRONG = [
    ("missing.html", "leads to no file"),
    ("folder/missing.png", "leads to no file"),
    ("other.html#here", "leads to no anchor"),
    ("#there", "leads to no anchor"),
    ("https://nowhere/", "is no address"),
    ("ftp://example.com/", "is no address"),
    ("file:line", "is no address"),
]


def check(folder: Path, *links: str) -> tuple[int, list[str]]:
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "index.html").write_text(f'<p id="here">{anchors}</p>')
    (folder / "folder" / "index.html").write_text("")
    (folder / "other.html").write_text('<p id="there"></p>')
    (folder / "picture.png").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "links.py", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip().splitlines()


def test_links_that_lead_somewhere(tmp_path: Path) -> None:
    assert check(tmp_path, *GOOD) == (0, [f"3 pages, {len(GOOD)} links, 0 wrong"])


@pytest.mark.parametrize(("link", "why"), WRONG)
def test_a_link_that_leads_nowhere(link: str, why: str, tmp_path: Path) -> None:
    assert check(tmp_path, link) == (1, [f"index.html: {link} {why}", "3 pages, 1 links, 1 wrong"])


def test_a_site_without_pages_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "links.py", tmp_path], capture_output=True, check=False
    )
    assert done.returncode == 1
