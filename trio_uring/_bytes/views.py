"""Views of callers' memory: as bytes, fit to receive into, and let go as soon as a call is over.

Rules of this file: no I/O. Whoever exports a buffer releases it, so that its owner can resize it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def byte_view(view: memoryview) -> memoryview:
    """The same memory as bytes, which is what others know how to slice."""
    try:
        return view.cast("B")
    except TypeError:  # an item format that only its own library knows
        return memoryview(view.tobytes())


def check_writable(view: memoryview) -> None:
    """Raises TypeError or ValueError if receive_into cannot take this buffer."""
    if view.readonly or not view.c_contiguous:
        raise TypeError("receive_into takes a writable, C-contiguous buffer")
    if not view.nbytes:
        raise ValueError("receive_into takes a buffer that is not empty")


def copy_into(view: memoryview, chunk: bytes) -> int:
    """Into a view of any format, where a slice would want bytes."""
    return io.BytesIO(chunk).readinto(view)


def release_view(view: memoryview) -> None:
    """Ends our export of a caller's buffer, unless the kernel has it still because the call's
    coroutine was destroyed."""
    try:  # noqa: SIM105  (done for each buffer of each send, where contextlib.suppress is felt)
        view.release()
    except BufferError:
        pass


def release_views(views: Iterable[memoryview]) -> None:
    """Releases them all: a traceback may keep the frame that has them, and the caller may resize
    its buffers all the same."""
    for view in views:
        release_view(view)
