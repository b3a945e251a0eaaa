"""How the command line writes what it found: a name in the first column, its text beside it.

Rules of this file: it knows no facts.
"""

from __future__ import annotations

_WIDTH = 28  # characters of the first column
_WRAP = 100  # characters of text after it, in each line


def entry(name: str, text: str) -> list[str]:
    """A name and its text, in as many lines as they need."""
    lines, line = [], f"{name:<{_WIDTH}}"
    for word in text.split(" "):
        if len(line) + len(word) > _WIDTH + _WRAP:
            lines.append(line.rstrip())
            line = " " * _WIDTH
        line += word + " "
    return [*lines, line.rstrip()]
