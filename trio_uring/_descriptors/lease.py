"""An open descriptor, with two directions and an owner, and how it closes.

A socket and the streams on it share one lease. So closing one of them wakes the tasks that wait on
any of them, and none takes a direction that a task has through another.

Rules of this file: it knows neither sockets' methods nor streams. The descriptor is closed once,
through the engine, which first withdraws or cancels the operations on it. Nothing here refers to
the socket or stream that has the lease, so that a forgotten one is freed at once.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
from threading import get_ident
from typing import TYPE_CHECKING, Any

from trio.lowlevel import enable_ki_protection

from .._driver.phases import CHILD, FAILED
from .._driver.run import current_driver
from .direction import Direction

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._driver.operation import TaskOperation
    from .._driver.run import AnyEngine


class Lease:
    """The directions of one descriptor.

    Args:
        owner: the object that keeps the descriptor open while the ring holds an operation on it.
        close: closes the descriptor.
        fileno: returns the descriptor's current number; if it has changed, the descriptor was
            closed.
        shutdown: shuts down a socket, or one direction of it; None: it is not a socket.

    Attributes:
        receiving, sending: the directions.
        noun: what messages call it.
    """

    __slots__ = (
        "__weakref__", "_close", "_shutdown", "fd", "fileno", "noun", "owner", "receiving",
        "sending",
    )  # fmt: skip

    def __init__(
        self,
        owner: Any,
        close: Callable[[], object],
        fileno: Callable[[], int],
        shutdown: Callable[[int], object] | None = None,
    ) -> None:
        self.owner: Any = owner
        self.fileno: Callable[[], int] = fileno
        self.fd: int = fileno()
        self.noun: str = "stream"
        self._close = close
        self._shutdown = shutdown
        self.receiving: Direction = Direction(self, fileno, True, shutdown is not None)
        self.sending: Direction = Direction(self, fileno, False, shutdown is not None)

    @property
    def closed(self) -> bool:
        """Whether it was closed; the descriptor itself may still be open for a moment."""
        return self.receiving.closed and self.sending.closed

    def operations(self) -> list[TaskOperation]:
        """All operations that may be in use."""
        return _operations(self.receiving) + _operations(self.sending)

    # -- the run

    def engine(self) -> AnyEngine:
        """The engine for a new operation: only one at a time works on the descriptor.

        In a forked child it is the parent's, which refuses: the parent may have operations on it.
        """
        return self.used_by() or self.engine_of_streams(in_child=True) or self.current_engine()

    def current_engine(self) -> AnyEngine:
        """The engine of the current run."""
        return current_driver().engine

    def engine_of_streams(self, in_child: bool = False) -> Any:
        """The engine of a run that is not over and has streams on the descriptor, or None.

        Args:
            in_child: in a forked child, the engine of the parent's run counts, too.
        """
        for way in (self.receiving, self.sending):
            # A copy, since a garbage collection may change the dict.
            for kind, op in list(way.operations.items()):
                of_stream = not isinstance(kind, int) or kind >= 0
                phase = op.engine.phase
                if of_stream and (not phase.over or (in_child and phase is CHILD)):
                    return op.engine
        return None

    def used_by(self) -> Any:
        """The engine with a task that waits on the descriptor, or an operation in the kernel."""
        return next((op.engine for op in self.operations() if op.in_use), None)

    def check_thread(self) -> None:
        """Raises RuntimeError, as trio does, if a trio.run of another thread is using it.

        Then it cannot be closed in this thread.
        """
        engine = self.used_by()
        if engine is not None and engine.thread != get_ident():
            what = "must be called from async context, and in the trio.run whose task waits on this"
            raise RuntimeError(what)

    # -- closing

    @enable_ki_protection
    def close(self) -> None:
        """Closes the descriptor. Operations on it end with ECANCELED, or with what they did."""
        ways = (self.receiving, self.sending)
        for way in ways:
            way.closed = way.ended = True
        self.release(self._close)

    @enable_ki_protection
    def close_direction(self, way: Direction, shutdown: Callable[[int], object]) -> None:
        """Closes one direction of a split stream; the descriptor too, if the other one is closed.

        Args:
            way: the direction.
            shutdown: shuts down one direction of the socket.
        """
        other = self.sending if way.receiving else self.receiving
        if other.closed:
            self.close()
            return
        way.closed = way.ended = True
        engine = self._used_with()
        if engine is None:
            self._shut_down(way, shutdown)
        else:
            engine.release(_operations(way), lambda: self._shut_down(way, shutdown))
        _tell(way)

    def _shut_down(self, way: Direction, shutdown: Callable[[int], object]) -> None:
        with contextlib.suppress(OSError):  # the connection is gone already
            shutdown(stdlib_socket.SHUT_RD if way.receiving else stdlib_socket.SHUT_WR)
            if way.receiving and self.owner.family == stdlib_socket.AF_UNIX:
                # A peer that waits because the buffer is full would not notice that it can send no
                # more. The loop ends, since the peer cannot send anything new.
                while os.read(self.fd, 2**16):
                    pass

    @enable_ki_protection
    def release(self, close: Callable[[], object]) -> None:
        """Ends the operations on the descriptor, and calls `close` once the kernel knows."""
        engine = self._used_with()
        if engine is None:
            close()
        else:
            engine.release(self.operations(), lambda: self._end(engine, close))
        _tell(self.receiving)
        _tell(self.sending)

    def _end(self, engine: AnyEngine, close: Callable[[], object]) -> None:
        if engine.phase is FAILED and self._shutdown is not None:
            # Operations that the kernel holds and nobody can cancel would hold back the FIN.
            with contextlib.suppress(OSError):
                self._shutdown(stdlib_socket.SHUT_RDWR)
        close()

    def _used_with(self) -> Any:
        return self.used_by() or self.engine_of_streams()


def closed_lease(lease: Lease) -> Lease:
    """The closed lease of a stream that has handed its own lease over."""
    closed = Lease(lease.owner, _nothing, lease.fileno)
    for way in (closed.receiving, closed.sending):
        way.closed = way.ended = True
    return closed


def _nothing() -> None:
    pass


def _operations(way: Direction) -> list[TaskOperation]:
    kept = list(way.operations.values())  # a copy, for the same reason
    return kept + [op for op in (way.waiter, way.left) if op is not None and op not in kept]


def _tell(way: Direction) -> None:
    if way.told is not None:
        way.told()
