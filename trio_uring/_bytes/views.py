"""Views of callers' buffers: seen as bytes, checked, and released as soon as a call is over.

Rules of this file: no I/O. Whoever exports a buffer releases it, so that its owner can resize it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def byte_view(view: memoryview) -> memoryview:
    """The same memory as a view of bytes, which can be sliced byte by byte."""
    try:
        # PyPy reads a cast view byte by byte.
        return view[:] if view.format == "B" and view.ndim == 1 else view.cast("B")
    except TypeError:  # an item format that only its own library knows
        return memoryview(view.tobytes())


def check_writable(view: memoryview) -> None:
    """Raises TypeError or ValueError if receive_into cannot take this buffer."""
    if view.readonly or not view.c_contiguous:
        raise TypeError("receive_into takes a writable, C-contiguous buffer")
    if not view.nbytes:
        raise ValueError("receive_into takes a buffer that is not empty")


def copy_into(view: memoryview, chunk: bytes) -> int:
    """Copies into a view of any format; assigning to a slice works only with format "B"."""
    return io.BytesIO(chunk).readinto(view)


def release_view(view: memoryview) -> None:
    """Ends our export of a caller's buffer.

    It does nothing if the kernel still has the buffer because the call's coroutine was destroyed.
    """
    try:  # noqa: SIM105  (for each buffer of each send; contextlib.suppress costs measurably more)
        view.release()
    except BufferError:
        pass


def release_views(views: Iterable[memoryview]) -> None:
    """Releases all of them, so that a traceback that keeps our frames does not keep them exported.

    The caller can resize its buffers in any case.
    """
    for view in views:
        release_view(view)


def release_pinned(data: object) -> None:
    """Releases what the accelerator has exported for a send, which it began: a view, or a tuple.

    A buffer of bytes is no export.
    """
    for item in data if isinstance(data, tuple) else (data,):
        if isinstance(item, memoryview):
            release_view(item)
