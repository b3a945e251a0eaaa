"""One socket under two streams, one for each direction, which close independently.

Why a shared lease and not dup(2): no second descriptor for each connection, a split that cannot
fail with EMFILE, one trio socket that knows for both whether the sending direction is shut down,
and closing that socket still wakes everyone.

Rules of this file: a half that is closed first ends what its direction does and shuts it down; the
half that is closed last closes the socket.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from .._descriptors.lease import Lease
from .._ring.op import poll_event
from .._ring.opcodes import POLLIN

if TYPE_CHECKING:
    import trio

    from .._driver.engine import TaskOperation


class HalfLease(Lease):
    """One direction's part of the lease on a socket.

    Args:
        whole: the lease on the socket.
        sock: the socket.
        how: SHUT_WR or SHUT_RD: what this half shuts down.
        halves_open: a list of the halves that are open, the same for both; this one is added.
    """

    closes_descriptor = False

    __slots__ = ("_halves_open", "_how", "_socket", "_whole")

    def __init__(
        self, whole: Lease, sock: trio.socket.SocketType, how: int, halves_open: list[int]
    ) -> None:
        self._whole = whole
        self.owner, self.operations, self.copying = whole.owner, whole.operations, whole.copying
        self.closed, self._close, self._shutdown = False, whole.close, None
        self._socket = sock
        self._how = how
        self._halves_open = halves_open
        halves_open.append(how)

    # What `.socket` does itself is the whole lease's: neither half may receive or send at the same
    # time.

    @property
    def reading(self) -> TaskOperation | None:  # type: ignore[override]
        return self._whole.reading

    @property
    def writing(self) -> TaskOperation | None:  # type: ignore[override]
        return self._whole.writing

    @property
    def kept(self) -> bytes:
        return self._whole.kept

    @kept.setter
    def kept(self, rest: bytes) -> None:
        self._whole.kept = rest

    @enable_ki_protection
    def close(self) -> None:
        """Once, as its stream does: ends the direction, or all when the other one has ended."""
        self._halves_open.remove(self._how)
        if not self._halves_open:
            self._whole.close()
            return
        driver = self.live_driver()
        if driver is None:
            self._shut_down()
        else:
            receiving = self._how == stdlib_socket.SHUT_RD
            driver.release(
                [op for op in self.operations if (poll_event(op) == POLLIN) == receiving],
                self._shut_down,
            )
        self.tell_copies(self._how == stdlib_socket.SHUT_RD)

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # the connection is gone already
            self._socket.shutdown(self._how)
            if self._how == stdlib_socket.SHUT_RD and self._socket.family == stdlib_socket.AF_UNIX:
                # A peer whose buffer is full waits for room, and would not see that it can send no
                # more. As it cannot, there is an end to this.
                while os.read(self._socket.fileno(), 2**16):
                    pass
