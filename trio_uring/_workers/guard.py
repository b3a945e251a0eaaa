"""Whether this process is importing the program as a worker.

A script that calls serve_workers outside of `if __name__ == "__main__"` would have each worker
start workers of its own.

Rules of this file: standard library only.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_loading = False


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Within the block, `check` refuses."""
    global _loading
    _loading = True
    try:
        yield
    finally:
        _loading = False


def check() -> None:
    """Raises RuntimeError while a worker imports the program."""
    if _loading:
        raise RuntimeError(
            "a worker that imports the program has come to serve_workers itself: "
            'call it under `if __name__ == "__main__":`'
        )
