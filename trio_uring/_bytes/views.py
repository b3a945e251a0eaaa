"""Letting go of callers' buffers, so that they can be resized as soon as a call is over.

Rules of this file: nothing is exported here, and nothing is copied.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def release_view(view: memoryview) -> None:
    """Ends our export of a caller's buffer, unless the kernel has it still because the call's
    coroutine was destroyed."""
    with contextlib.suppress(BufferError):
        view.release()


def release_views(views: Iterable[memoryview]) -> None:
    """Releases them all: a traceback may keep the frame that has them, and the caller may resize
    its buffers all the same."""
    for view in views:
        release_view(view)
