"""Every message of the package has its heading among the pages of troubleshooting, and says what to
do; and a heading is a message that there is.

Rules of this file: what a message is, support/messages.py says. Those without a heading are listed
here, with the reason.
"""

from __future__ import annotations

import re

import pytest
from support.messages import GAP, messages
from support.pages import DOCS

PAGES = ("troubleshooting", "messages-arguments", "messages-commands")
# Texts that are Python's or nobody's: they are seen only if this package has a mistake, or if a
# coroutine is used as none may be used.
OWN_MISTAKES = {
    "module … has no attribute …",
    "an operation that is … cannot become …",
    "a run's engine that is … cannot become …",
    "a call was resumed that still waits for its operation",
    "cannot reuse already awaited coroutine",
    "coroutine already executing",
    "coroutine is being awaited already",
    "can't send non-None value to a just-started coroutine",
    "use_socket_methods takes a class",
    "raise_cancel has returned",
    "trio's ….… is not a slot",
}

SECTIONS = [
    (page, heading, text.strip())
    for page in PAGES
    for _, heading, text in re.findall(
        r"^### (`|`` )(?!`)([^\n]*?)(?: ``|`)$\n(.*?)(?=^##|\Z)",
        (DOCS / "howto" / f"{page}.md").read_text(),
        re.M | re.S,
    )
]
HEADINGS = [heading for _, heading, _ in SECTIONS]


def has_a_heading(text: str) -> bool:
    """Its own, or that of a message that begins with it."""
    return any(heading == text or heading.startswith(f"{text}: ") for heading in HEADINGS)


def test_every_message_has_a_heading() -> None:
    missing = {
        text: sorted(where)
        for text, where in messages().items()
        if text not in OWN_MISTAKES and not has_a_heading(text)
    }
    assert not missing, "a heading in docs/howto/troubleshooting.md, or a page beside it, for each"


def test_every_heading_is_a_message() -> None:
    assert not sorted(set(HEADINGS) - messages().keys())


def test_no_message_has_two_headings() -> None:
    assert sorted(HEADINGS) == sorted(set(HEADINGS))


def test_what_needs_no_heading_is_still_there() -> None:
    assert messages().keys() >= OWN_MISTAKES


@pytest.mark.parametrize("page", PAGES)
def test_every_heading_is_explained(page: str) -> None:
    assert not [heading for where, heading, text in SECTIONS if where == page and len(text) < 10]


def test_the_source_is_read() -> None:
    """One of each kind: an exception, a helper, a name, a table, a warning, the log, C."""
    found = messages()
    assert "send_all takes bytes, not str: encode the text first" in found
    assert "another socket is bound there" in found
    assert "all attempts to connect to … failed" in found
    assert "this trio.run is over" in found
    assert "the system is at its limit of open files (sysctl fs.file-max)" in found
    assert "unclosed stream on descriptor …" in found
    assert "trio_uring waits by readiness: …" in found
    assert "coroutine already executing" in found
    assert all(GAP * 2 not in text for text in found)
