"""Serving connections with limits, and ending gracefully.

The rules are those of trio.serve_listeners: exceptions of handlers and listeners end the server,
and where there are no descriptors left, accepting is tried again after a pause. Limits and the
graceful end are added.

The end, once the Shutdown is started: listeners are closed. A connection whose handler has waited
`quiet` seconds for a byte has its receiving side shut down. The others go on. What is left after
the time of grace is cancelled.

Rules of this file: a task for each listener, one for each connection, and the caller's; none of
them is in the way of a connection's bytes. Of connections, at most `max_connections` are being
served, whatever races.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import operator
import os
import sys
from typing import TYPE_CHECKING, Any

import trio

from .._bytes.timed import check_timeout
from .connection import Connection
from .shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

if sys.version_info < (3, 11):
    # a dependency of trio's
    from exceptiongroup import BaseExceptionGroup  # pyright: ignore[reportMissingImports]

_log = logging.getLogger("trio_uring")
# As in trio, and to the same logger.
_trio_log = logging.getLogger("trio.serve_listeners")
_CAPACITY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_PAUSE = 0.1  # seconds
# Seconds for the first byte of a connection once a server ends, if only handlers know what is idle:
# its handler was not called yet.
_UNBEGUN = 0.2
_LEAST_LOOK = 0.02  # seconds between two looks for quiet connections


class Slots:
    """At most `most` connections at a time, of several listeners.

    A slot is free before a listener accepts, so that others wait in the backlog. It is not kept
    for that listener: one that has no clients would keep it from the others. So what was accepted
    takes the slot, and if it was the last, the other listeners stop accepting. If they have
    accepted in the same moment, that connection waits for the next free slot.

    Args:
        most: None: no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._free: float = math.inf if most is None else most
        self._accepting: set[trio.CancelScope] = set()
        self._freed = trio.lowlevel.ParkingLot()

    async def accept(self, listener: trio.abc.Listener[Any]) -> Any:
        """Waits for a connection, and takes a slot for it.

        Cancellation: a connection that was accepted and waits for a slot is closed.
        """
        while True:
            while self._free < 1:
                await self._freed.park()
            with trio.CancelScope() as scope:
                self._accepting.add(scope)
                try:
                    stream = await listener.accept()
                finally:
                    self._accepting.discard(scope)
                break
        try:
            while self._free < 1:
                await self._freed.park()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self._free -= 1
        if self._free < 1:
            for other in self._accepting:
                other.cancel()
        return stream

    def release(self) -> None:
        self._free += 1
        self._freed.unpark_all()


class Server:
    """Serves the connections of listeners.

    Args:
        handler, max_connections, first_byte_timeout, idle_timeout, shutdown: as in
            serve_listeners.

    Raises:
        ValueError, TypeError: an argument is out of range.
    """

    def __init__(
        self,
        handler: Callable[[Any], Awaitable[object]],
        max_connections: int | None,
        first_byte_timeout: float | None,
        idle_timeout: float | None,
        shutdown: Shutdown | None,
    ) -> None:
        if max_connections is not None and operator.index(max_connections) < 1:
            what = f"max_connections must be at least 1, or None, not {max_connections!r}"
            raise ValueError(what)
        check_timeout(first_byte_timeout)
        check_timeout(idle_timeout)
        if shutdown is not None and not isinstance(shutdown, Shutdown):
            raise TypeError(f"shutdown must be a Shutdown or None, not {shutdown!r}")
        self._handler = handler
        self._slots = Slots(max_connections)
        self._first_byte_timeout = math.inf if first_byte_timeout is None else first_byte_timeout
        self._idle_timeout = idle_timeout
        self._shutdown = shutdown
        self._connections: set[Connection] = set()
        self._listening = 0
        self._cut = False  # the time of grace is over
        self._over = trio.Event()  # the last listener and the last connection have ended

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[Any]],
        handler_nursery: trio.Nursery | None,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        self._listening = len(listeners)
        async with trio.open_nursery() as nursery:
            handlers = nursery if handler_nursery is None else handler_nursery
            for listener in listeners:
                nursery.start_soon(self._accept_all, listener, handlers)
            task_status.started(listeners)
            if self._shutdown is not None:
                await self._shutdown.wait()
                await self._end(self._shutdown)

    # -- accepting

    async def _accept_all(self, listener: trio.abc.Listener[Any], handlers: trio.Nursery) -> None:
        shutdown = self._shutdown
        try:
            with contextlib.nullcontext() if shutdown is None else shutdown.cancel_on_start():
                async with listener:
                    while True:
                        await self._accept(listener, handlers)
        finally:
            self._listening -= 1
            self._look_over()

    async def _accept(self, listener: trio.abc.Listener[Any], handlers: trio.Nursery) -> None:
        try:
            stream = await self._slots.accept(listener)
        except OSError as exc:
            if exc.errno not in _CAPACITY:
                raise
            _trio_log.error(
                "accept returned %s (%s); retrying in %s seconds",
                errno.errorcode[exc.errno],
                os.strerror(exc.errno),
                _PAUSE,
                exc_info=True,
            )
            await trio.sleep(_PAUSE)
            return
        connection = Connection(stream)
        self._connections.add(connection)
        if self._cut:  # a listener may have accepted it although it was cancelled
            connection.scope.cancel()
        handlers.start_soon(self._serve_connection, connection)

    # -- one connection

    async def _serve_connection(self, connection: Connection) -> None:
        try:
            # Without a Shutdown nobody cancels it, and a scope costs more than all the rest here.
            with contextlib.nullcontext() if self._shutdown is None else connection.scope:
                try:
                    if await self._is_worth_it(connection):
                        connection.begin()
                        await self._handler(connection.stream)
                except BaseException as exc:
                    unexpected = self._unexpected(exc)
                    if unexpected is exc:
                        raise
                    if unexpected is not None:
                        raise unexpected from unexpected.__cause__
                    _log.debug("a connection was closed: %r", exc)
                finally:
                    await trio.aclose_forcefully(connection.stream)
        finally:
            self._connections.discard(connection)
            self._slots.release()
            self._look_over()

    async def _is_worth_it(self, connection: Connection) -> bool:
        """Whether the handler is to be called; until then nothing is sent."""
        limit = self._first_byte_timeout
        waits = connection.has_header or limit < math.inf
        with connection.before if waits else contextlib.nullcontext():
            if connection.has_header and not await connection.receive_header():
                return False
            if self._idle_timeout is not None:
                connection.limit(self._idle_timeout)
            if limit == math.inf:
                return True
            connection.before.deadline = trio.current_time() + limit
            return await connection.has_first_byte()
        return False

    def _unexpected(self, exc: BaseException) -> BaseException | None:
        """What of an exception ends the server; None: it ends only this connection."""
        kinds: tuple[type[Exception], ...] = ()
        if self._idle_timeout is not None:
            kinds += (trio.TooSlowError,)
        if self._shutdown is not None and self._shutdown.started:
            # Its receiving side was shut down, which looks to TLS like a connection that was cut.
            kinds += (trio.BrokenResourceError,)
        if kinds and isinstance(exc, BaseExceptionGroup):  # of a nursery in the handler
            group: Any = exc
            expected, rest = group.split(kinds)
            return exc if expected is None else rest
        return None if isinstance(exc, kinds) else exc

    # -- the end

    async def _end(self, shutdown: Shutdown) -> None:
        """Returns when everything has ended."""
        self._look_over()
        with shutdown.cancel_after_grace():
            while not self._over.is_set():
                with trio.move_on_after(self._look(shutdown.quiet)):
                    await self._over.wait()
        self._cut = True
        for connection in self._connections:
            connection.scope.cancel()
        await self._over.wait()

    def _look_over(self) -> None:
        if not (self._listening or self._connections):
            self._over.set()

    def _look(self, quiet: float) -> float:
        """Ends the connections that are quiet. Returns the seconds until the next look."""
        now, unbegun = trio.current_time(), _UNBEGUN if quiet == math.inf else quiet
        waits = self._listening > 0
        for connection in self._connections:
            if not connection.ended:
                waits = waits or not connection.begun
                if connection.is_quiet(now, quiet if connection.begun else unbegun):
                    connection.end()
        return max(unbegun if waits else quiet, _LEAST_LOOK)
