"""The C extension; or, where it was not built, a stand-in that says so when a ring is wanted.

Only rings need the extension: networks on trio's sockets or in memory, frames and the rest work on
any platform that trio runs on.

Rules of this file: importing never fails. `ffi` and `lib` are for `_ring/entries.py` and the rings.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NoReturn

from .._errors import RingUnavailableError


class _Missing:
    """Stands in for the extension, and refuses every call."""

    def __init__(self, reason: ImportError) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        return self._refuse

    def _refuse(self, *_: object) -> NoReturn:
        message = (
            "trio_uring was installed without its C extension, which is built for CPython on "
            f"Linux, x86-64 and aarch64, and is what io_uring needs ({self._reason})"
        )
        raise RingUnavailableError(errno.ENOSYS, message) from self._reason


if TYPE_CHECKING:
    from trio_uring._uring import ffi as ffi
    from trio_uring._uring import lib as lib
else:
    try:
        from trio_uring._uring import ffi, lib
    except ImportError as exc:
        ffi = lib = _Missing(exc)
