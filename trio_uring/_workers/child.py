"""A worker process, from its first line to its last.

The supervisor is at the other end of a pair of sockets. A thread waits there, not a task: it
answers, and notices that the supervisor is gone, also while the program keeps trio's thread busy,
and nothing of it is seen in the run's statistics.

Rules of this file: signals that a terminal or a service manager sends to all processes at once do
no harm here. Only the supervisor decides when a worker ends: SIGTERM starts the worker's shutdown
however often it comes, and SIGINT and SIGHUP are not for workers.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import trio

from .._options import SocketOptions
from .._serving.shutdown import Shutdown, Taken
from .._streams.enable import run
from .._streams.listeners import listener_over
from . import guard
from .channel import ANSWER_SECONDS, KILL_SECONDS, Channel, Order
from .signals import SIGHUP, SIGKILL
from .target import TargetError, load_target
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Answer = Callable[[], list[Any] | None]

UNLOADABLE = 2  # the exit status of a worker whose function cannot be loaded

_SLEEP_MAX = 1e9  # seconds; time.sleep refuses much more

_log = logging.getLogger("trio_uring")


def start(fd: int) -> None:
    """Runs the worker; `fd` is its end of the channel. Returns when its `main` has returned."""
    for number in (signal.SIGINT, SIGHUP):
        # Not SIG_IGN, which the worker's own children would inherit.
        signal.signal(number, _not_for_workers)
    channel = Channel(socket.socket(fileno=fd))
    message = channel.receive()
    if message is None:
        return
    order = Order.of_message(message)
    for each in order.listeners:
        os.set_inheritable(each, False)
    sys.argv[:], sys.path[:] = order.argv, order.path
    supervised = _Supervised(channel, Shutdown(grace=order.grace))
    threading.Thread(target=supervised.obey, name="trio_uring supervisor", daemon=True).start()
    try:
        with guard.loading():
            main = load_target(order.target)
        run(_work, main, order, supervised, backend=order.backend)
    except TargetError as exc:
        channel.send({"failed": str(exc), "details": exc.details})
        raise SystemExit(UNLOADABLE) from None


def _not_for_workers(number: int, frame: FrameType | None) -> None:
    pass


async def _work(main: Callable[..., Any], order: Order, supervised: _Supervised) -> None:
    shutdown = supervised.shutdown
    # Not Shutdown.on_signals: a service manager sends one to every process, and so does the
    # supervisor, and the second would cut connections off.
    Taken(signal.SIGTERM, lambda number, frame: shutdown.start())
    worker = Worker(
        order.number,
        order.workers,
        # On Linux connections inherit the others from the supervisor's socket.
        [listener_over(_socket(each), SocketOptions(**order.buffers)) for each in order.listeners],
        shutdown=shutdown,
        on_ready=supervised.is_ready,
    )
    if order.metrics:
        supervised.answer = _answers()
    try:
        running = main(worker)
        if not inspect.isawaitable(running):
            raise TargetError(f"{order.target} is not an async function")
        await running
    finally:
        for listener in worker.listeners:
            listener.socket.close()


def _socket(fd: int) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(socket.socket(fileno=fd))


def _answers() -> Answer:
    from .series import Series  # needs prometheus-client

    series, token = Series(), trio.lowlevel.current_trio_token()

    def read() -> list[Any] | None:
        """None: trio's thread is stuck, so that a worker that only seems to live is seen."""
        answered = threading.Event()
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(answered.set)
        return series.read() if answered.wait(ANSWER_SECONDS / 2) else None

    return read


class _Supervised:
    """The supervisor, as the worker's thread for it sees it.

    Attributes:
        answer: reads the metrics, in the worker's run; None: they are not asked for, or not yet.
    """

    def __init__(self, channel: Channel, shutdown: Shutdown) -> None:
        self.shutdown = shutdown
        self.answer: Answer | None = None
        self._channel = channel

    def is_ready(self) -> None:
        self._channel.send({"ready": True})

    def obey(self) -> None:
        """Does what the supervisor asks for, and ends the worker when there is none any more."""
        while (message := self._channel.receive()) is not None:
            if message["ask"] == "metrics":
                self._send_metrics()
            else:
                self.shutdown.cut_short()
        self.shutdown.start()
        if self.shutdown.grace < math.inf:
            time.sleep(min(self.shutdown.grace + KILL_SECONDS, _SLEEP_MAX))
            _log.error("the supervisor is gone and this worker does not end: it is killed")
            os.kill(os.getpid(), SIGKILL)

    def _send_metrics(self) -> None:
        """Whatever a collector of the program does: this thread has to go on."""
        try:
            self._channel.send({"metrics": None if self.answer is None else self.answer()})
        except Exception:
            _log.exception("this worker's metrics could not be read")
            self._channel.send({"metrics": None})
