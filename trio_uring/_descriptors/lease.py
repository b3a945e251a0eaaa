"""A descriptor that is open, with two directions and an owner, and how it closes.

A socket and the streams on it share one lease, so that closing any of them wakes the tasks that
wait on all, and none takes a direction that a task has on another.

Rules of this file: it knows no method of a socket and no stream. The descriptor is closed once,
through the engine, which takes back or cancels what is using it first. Nothing here refers to the
socket or stream that has the lease: one that is forgotten is freed at once.
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
        owner: what keeps the descriptor open for as long as the ring holds an operation on it.
        close: closes the descriptor.
        fileno: the descriptor's number now; another one than at first: it is closed.
        shutdown: ends a socket's connection, or one direction of it; None: it is not a socket.

    Attributes:
        receiving, sending: the directions.
        noun: what to call it in messages.
        split: its directions close independently; the second one closes the descriptor.
    """

    __slots__ = (
        "__weakref__", "_close", "_shutdown", "fd", "fileno", "noun", "owner", "receiving",
        "sending", "split",
    )  # fmt: skip

    def __init__(
        self,
        owner: Any,
        close: Callable[[], object],
        fileno: Callable[[], int],
        shutdown: Callable[[int], object] | None = None,
    ) -> None:
        self.owner = owner
        self.fileno = fileno
        self.fd = fileno()
        self.noun = "stream"
        self.split = False
        self._close = close
        self._shutdown = shutdown
        self.receiving = Direction(self, fileno, True, shutdown is not None)
        self.sending = Direction(self, fileno, False, shutdown is not None)

    @property
    def closed(self) -> bool:
        """Close was called; the descriptor may be open still, for a moment."""
        return self.receiving.closed and self.sending.closed

    def operations(self) -> list[TaskOperation]:
        """All that may be in use."""
        return _operations(self.receiving) + _operations(self.sending)

    # -- the run

    def engine(self) -> AnyEngine:
        """The engine for a new operation: no other may work on the descriptor while one does.

        In a forked child it is the parent's, which refuses: the parent may have operations on it.
        """
        return self.used_by() or self.engine_of_streams(in_child=True) or self.current_engine()

    def current_engine(self) -> AnyEngine:
        """This run's."""
        return current_driver().engine

    def engine_of_streams(self, in_child: bool = False) -> Any:
        """The engine of the run that goes on and has streams on the descriptor; None: there is
        none."""
        for way in (self.receiving, self.sending):
            # At once: a garbage collection may change the dict.
            for kind, op in list(way.operations.items()):
                of_stream = not isinstance(kind, int) or kind >= 0
                phase = op.engine.phase
                if of_stream and (not phase.over or (in_child and phase is CHILD)):
                    return op.engine
        return None

    def used_by(self) -> Any:
        """The engine for which a task waits on the descriptor, or the kernel has an operation."""
        return next((op.engine for op in self.operations() if op.in_use), None)

    def check_thread(self) -> None:
        """Raises RuntimeError, as trio does, if a trio.run of another thread is using it.

        It cannot be closed here.
        """
        engine = self.used_by()
        if engine is not None and engine.thread != get_ident():
            what = "must be called from async context, and in the trio.run whose task waits on this"
            raise RuntimeError(what)

    # -- closing

    @enable_ki_protection
    def close(self) -> None:
        """Closes the descriptor. Operations on it end with ECANCELED, or with what they have
        done."""
        ways = (self.receiving, self.sending)
        for way in ways:
            way.closed = way.ended = True
        self.release(self._close)

    @enable_ki_protection
    def close_direction(self, way: Direction, shutdown: Callable[[int], object]) -> None:
        """Ends one direction of a split stream, or closes all when the other one has ended.

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
                # A peer whose buffer is full waits for room, and would not see that it can send no
                # more. As it cannot, there is an end to this.
                while os.read(self.fd, 2**16):
                    pass

    @enable_ki_protection
    def release(self, close: Callable[[], object]) -> None:
        """Ends the operations on the descriptor, and calls `close` once the kernel knows."""
        engine = self._used_with()
        if engine is None:
            close()
        else:
            if engine.phase is FAILED and self._shutdown is not None:
                # What the kernel holds and nobody can cancel would keep back the FIN.
                with contextlib.suppress(OSError):
                    self._shutdown(stdlib_socket.SHUT_RDWR)
            engine.release(self.operations(), close)
        _tell(self.receiving)
        _tell(self.sending)

    def _used_with(self) -> Any:
        return self.used_by() or self.engine_of_streams()


def closed_lease(lease: Lease) -> Lease:
    """What a stream is left with that has handed over its lease."""
    closed = Lease(lease.owner, _nothing, lease.fileno)
    for way in (closed.receiving, closed.sending):
        way.closed = way.ended = True
    return closed


def _nothing() -> None:
    pass


def _operations(way: Direction) -> list[TaskOperation]:
    kept = list(way.operations.values())  # at once, too
    return kept + [op for op in (way.waiter, way.left) if op is not None and op not in kept]


def _tell(way: Direction) -> None:
    if way.told is not None:
        way.told()
