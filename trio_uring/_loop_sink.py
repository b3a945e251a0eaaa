"""The sending end of a loop that copies: counts what any kind of stream took.

Rules of this file: what may have been sent is never called unsent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import checkpoint_if_cancelled

from ._pump import call
from ._send import SendSide
from ._timed import TimedSend
from ._vectored import TrioTransport, send_one

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopSink:
    """A stream to send to, for the time of a `with` block.

    Attributes:
        total: bytes that the stream has taken.
        unsent: bytes at the end of the last chunk that it has certainly not taken.
    """

    def __init__(self, stream: trio.abc.SendStream, progress: Callable[[int], object] | None) -> None:
        is_trios = isinstance(stream, trio.SocketStream) and not isinstance(stream, SendSide)
        self._out: Any = TrioTransport(stream) if is_trios else stream  # type: ignore[arg-type]
        self._counts = isinstance(self._out, (SendSide, TrioTransport)) or (
            isinstance(self._out, TimedSend) and getattr(self._out, "bytes_sent", None) is not None
        )
        self._progress = progress
        self._began = False
        self.total = 0
        self.unsent = 0

    def __enter__(self) -> LoopSink:
        return self

    def __exit__(self, *_: object) -> None:
        if self._began and isinstance(self._out, SendSide):
            self._out.bytes_sent = self.total

    async def send(self, chunk: bytes) -> None:
        """Sends it all, and tells the progress."""
        size = self.unsent = len(chunk)
        await checkpoint_if_cancelled()  # so that only a send that blocked can be cut off
        try:
            await send_one(self._out, chunk, math.inf)
        except trio.BusyResourceError:
            raise
        except BaseException:
            self._took(self._out.bytes_sent if self._counts else 0)
            self.unsent = self.unsent if self._counts else 0
            raise
        self._took(size)

    def _took(self, count: int) -> None:
        self._began = True
        self.unsent -= count
        self.total += count
        if self._progress is not None and count:
            call(self._progress, self.total)
