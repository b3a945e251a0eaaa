"""Worker: what `main` is given in each worker process.

Rules of this file: it knows no supervisor. So a program can make a Worker by itself, and a test
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .._serving.server import Server
from .._serving.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .._streams.listeners import SocketListener
    from .._streams.streams import SocketStream


class Worker:
    """One of the processes that serve_workers keeps going, as its `main` sees it.

    A program that also runs without a supervisor may make one: ``trio_uring.run(main, Worker())``.

    Args:
        number: which one it is.
        workers: how many there are.
        listeners: what it accepts connections on.
        shutdown: asks it to end; None: a new one, which nobody starts.
        on_ready: called when it says for the first time that it is ready.
    """

    def __init__(
        self,
        number: int = 0,
        workers: int = 1,
        listeners: Sequence[SocketListener] = (),
        *,
        shutdown: Shutdown | None = None,
        on_ready: Callable[[], object] | None = None,
    ) -> None:
        self.number: int = number
        """Which one this is, from 0; a worker that replaces another one has the same number."""
        self.workers: int = workers
        """How many there are."""
        self.listeners: list[SocketListener] = list(listeners)
        """Listeners on the addresses that serve_workers was given, for this process to accept on.
        The sockets are the supervisor's, and stay open in it: closing these loses no connection."""
        self.shutdown: Shutdown = Shutdown() if shutdown is None else shutdown
        """Started when this worker is to end: hand it to the servers that `main` runs."""
        self._on_ready = on_ready
        self._ready = False

    def __repr__(self) -> str:
        return f"<Worker {self.number} of {self.workers}>"

    def ready(self) -> None:
        """Tells the supervisor that this worker serves; doing that again changes nothing.

        A rolling restart stops the old worker only then. `serve` calls it by itself.
        """
        if not self._ready:
            self._ready = True
            if self._on_ready is not None:
                self._on_ready()

    async def serve(
        self,
        handler: Callable[[SocketStream], Awaitable[object]],
        *,
        max_connections: int | None = None,
        first_byte_timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        """Serves this worker's listeners until its shutdown is over, and says that it is ready.

        It is ``serve_listeners(handler, worker.listeners, shutdown=worker.shutdown)``, with
        `ready` as soon as connections are accepted.

        Args:
            handler, max_connections, first_byte_timeout, idle_timeout: as in serve_listeners; the
                limits are those of this worker.

        Raises:
            ValueError: there are no listeners, since serve_workers was given no address; otherwise
                as in serve_listeners.

        Cancellation: the listeners are closed, and handlers are cancelled.
        """
        if not self.listeners:
            raise ValueError("this worker has no listeners: serve_workers was given no address")
        server = Server(handler, max_connections, first_byte_timeout, idle_timeout, self.shutdown)
        await server.serve(self.listeners, None, _Ready(self))


class _Ready(trio.TaskStatus[object]):
    """What a server calls when it serves."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def started(self, value: object = None) -> None:
        self._worker.ready()
