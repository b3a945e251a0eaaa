"""serve_workers: N processes on the same addresses, and the supervisor that keeps them going.

The supervisor is a small program on trio's own streams, without a ring. It accepts nothing but
scrapes, and runs nothing of the program: so there is little in it that could fail, and a rolling
restart gets all of the program anew.

Rules of this file: signals become method calls in one task. What is done to one worker is in
`slot` and `process`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import trio

from .._bytes.timed import check_timeout
from .._errors import WorkersError
from .._options import fold_options
from .._serving.systemd import (
    keep_watchdog,
    listeners_from_environment,
    try_notify,
    watchdog_seconds,
)
from .._streams.enable import Enable, run
from . import guard
from .backoff import Backoff
from .channel import KILL_SECONDS, Order
from .http import serve_page
from .orphans import REAP_SECONDS, gets_orphans, reap
from .ports import SYSTEMD, Ports, name_address, parse_address
from .process import Process
from .signals import SIGHUP
from .slot import Slot
from .target import Target, name_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from .._options import SocketOptions
    from .worker import Worker

_log = logging.getLogger("trio_uring")


def serve_workers(
    main: str | Callable[[Worker], Awaitable[object]],
    workers: int | None = None,
    *,
    bind: str | Sequence[str] = (),
    unix_mode: int | None = None,
    reuse_port: bool = False,
    options: SocketOptions | None = None,
    backend: str | None = None,
    grace: float = 10.0,
    ready_timeout: float = 60.0,
    failures_max: int | None = 8,
    metrics: str | None = None,
) -> None:
    """Runs `await main(worker)` in N processes until it is told to end, and keeps them going.

    It is an ordinary function, for the main thread, outside of trio: this process becomes the
    supervisor. Each worker is a new Python process that imports the program and calls main by
    trio_uring.run. docs/workers.md has the whole story. Signals to the supervisor:

    - SIGTERM, SIGINT: no more connections, the workers' shutdowns are started, and when all have
      ended this returns. A second one cuts short what is still going on.
    - SIGHUP: a rolling restart. Each worker is replaced by a new one, which imports the program
      anew; the old one is told to end when the new one is ready. If a new one fails, the rest stay
      as they are.

    A worker that ends by itself is started again, after 0.1 seconds and then twice as long for each
    failure in a row, 10 at most. Workers whose supervisor has died shut down by themselves.

    Args:
        main: "module:function", or a function at the top level of a module or script.
        workers: how many; None: one for each CPU that this process may use.
        bind: addresses to listen on: "host:port", ":port" or "[::1]:port"; "unix:path" or, on
            Linux, "unix:@abstract-name"; "systemd": the sockets of LISTEN_FDS. Each worker finds
            the listeners in `worker.listeners`. The sockets stay open here, so no connection that
            waits in a queue is lost with a worker. A path is taken as open_unix_listeners takes it,
            and its file is removed at the end.
        unix_mode: permissions of the files of Unix sockets, such as 0o660: whoever may write to a
            file may connect. None: what the umask leaves.
        reuse_port: on TCP, each worker has a queue of its own, and the kernel spreads the
            connections over them by a hash (SO_REUSEPORT). That is more even, but a queue waits for
            its worker while that is started again. False: all accept from one queue.
        options: of the listening sockets and their connections; None: the defaults.
        backend: as in Enable, for the workers.
        grace: seconds that connections have to finish (`Shutdown.grace` of the workers); a worker
            that still runs 5 seconds later is killed.
        ready_timeout: seconds from a worker's start until it has to be ready (Worker.ready,
            Worker.serve).
        failures_max: failures in a row of one worker after which all is given up; None: never.
        metrics: "host:port" of a page of all workers' metrics, at /metrics, in which each series
            has the label `worker` (needs prometheus-client).

    Raises:
        WorkersError: it was given up, since main cannot be loaded or fails again and again, or a
            worker had to be killed at the end.
        OSError: an address cannot be listened on.
        ValueError, TypeError: an argument is wrong.
        RingUnavailableError: "uring" was asked for, and io_uring cannot be used here.
        RuntimeError: not in the main thread, within trio, in a worker that imports the program, or
            on Windows.
        ImportError: metrics are asked for without prometheus-client.
    """
    _check_caller()
    _fill_standard_descriptors()
    Enable(backend)  # raises what is wrong with it here rather than in each worker
    check_timeout(grace)
    check_timeout(ready_timeout)
    count, target, page = _count(workers), name_target(main), _page_address(metrics)
    addresses = [bind] if isinstance(bind, str) else list(bind)
    given: list[socket.socket] = []  # taken last: what is wrong with an argument loses none
    ports = Ports(addresses, fold_options(options, reuse_port=reuse_port), given, unix_mode)
    supervisor = _Supervisor(
        target, count, ports, backend, grace, ready_timeout, failures_max, page
    )
    try:
        if SYSTEMD in addresses:
            given += run(_given_sockets, backend="off")
        run(supervisor.supervise, backend="off")  # trio's own, also where every run is enabled
    finally:
        ports.close()


def _check_caller() -> None:
    guard.check()
    if sys.platform == "win32":
        raise RuntimeError("serve_workers needs signals and Unix sockets, which Windows lacks")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("serve_workers handles signals: call it in the main thread")


def _fill_standard_descriptors() -> None:
    """Without standard input, the first socket would get its number, and in a worker, where
    standard input is /dev/null, be gone."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(fd, True)
    os.close(fd)


async def _given_sockets() -> list[socket.socket]:
    """The sockets that systemd has opened. Its listeners are for tasks; here nobody accepts."""
    await trio.lowlevel.checkpoint()
    given = [each.socket for named in listeners_from_environment().values() for each in named]
    if not given:
        raise ValueError(f"{SYSTEMD!r} is to be listened on, and LISTEN_FDS has no sockets")
    sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in given]
    for each in given:
        each.close()
    return sockets


def _page_address(metrics: str | None) -> tuple[str | None, int] | None:
    if metrics is None:
        return None
    from . import series  # noqa: F401  # the reason to raise ImportError

    return parse_address(metrics)


def _count(workers: int | None) -> int:
    if workers is None:
        # Those of this process, which a container may have limited.
        cpus = getattr(os, "sched_getaffinity", None)
        return len(cpus(0)) if cpus is not None else os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be an int, not {workers!r}")
    if workers < 1:
        raise ValueError(f"there must be at least 1 worker, not {workers}")
    return workers


class _Supervisor:
    """All slots, and what signals do to them."""

    def __init__(
        self,
        target: Target,
        workers: int,
        ports: Ports,
        backend: str | None,
        grace: float,
        ready_seconds: float,
        failures_max: int | None,
        metrics: tuple[str | None, int] | None,
    ) -> None:
        self._target = target
        self._ports = ports
        self._backend = backend
        self._grace = grace
        self._metrics = metrics
        self._slots = [
            Slot(number, self._launch, Backoff(failures_max), ready_seconds, self._give_up)
            for number in range(workers)
        ]
        self._living: set[Process] = set()
        self._killed: list[Process] = []
        self._failure: WorkersError | None = None
        self._keeping = trio.CancelScope()  # the slots, and rolling restarts
        self._stopping = False
        self._hang_up = trio.Event()
        self._nursery: trio.Nursery

    async def supervise(self) -> None:
        """From the opening of the sockets to the last worker's end."""
        # First: process 1 of a container has no default actions, and would miss a signal; every
        # other would be ended by it, and leave the files of its sockets behind.
        with _receive_signals() as signals, contextlib.closing(self._ports):
            self._ports.open(len(self._slots))  # it may block: nothing else runs yet
            watchdog, page = watchdog_seconds(), await self._open_page()
            async with trio.open_nursery() as self._nursery:
                if page:
                    self._nursery.start_soon(serve_page, self._page, page)
                if watchdog is not None:
                    self._nursery.start_soon(keep_watchdog, watchdog, self._is_healthy)
                if gets_orphans():
                    self._nursery.start_soon(self._reap)
                self._nursery.start_soon(self._obey, signals)
                await self._keep()
                await self._end()
                self._nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        if self._killed:
            who = ", ".join(map(str, self._killed))
            raise WorkersError(f"had to be killed, since they did not end in time: {who}")

    async def _keep(self) -> None:
        """Keeps the workers going until `_stop`."""
        for name in self._ports.names():
            _log.info("listening on %s", name)
        with self._keeping:
            async with trio.open_nursery() as nursery:
                for slot in self._slots:
                    nursery.start_soon(slot.keep)
                nursery.start_soon(self._say_ready)
                nursery.start_soon(self._roll)

    async def _say_ready(self) -> None:
        for slot in self._slots:
            await slot.first_ready.wait()
        _log.info("all workers are ready: %d", len(self._slots))
        try_notify(f"READY=1\nSTATUS={len(self._slots)} workers")

    def _is_healthy(self) -> bool:
        """Whether a worker is up, or is being started: not while all wait to be started again."""
        return bool(self._living)

    async def _reap(self) -> None:
        """Waits for what other processes have left to this one."""
        while True:
            await trio.sleep(REAP_SECONDS)
            # The number of one that is being started is not known yet.
            if all(process.pid for process in self._living):
                reap({process.pid for process in self._living})

    async def _end(self) -> None:
        """Asks all workers to end, and waits for them."""
        try_notify("STOPPING=1")
        self._ports.close()
        async with trio.open_nursery() as nursery:
            for process in self._living:
                nursery.start_soon(self._stop_one, process)

    def _launch(self, number: int) -> Process:
        process = Process(
            Order(
                number=number,
                workers=len(self._slots),
                target=self._target,
                listeners=self._ports.descriptors(number),
                argv=sys.argv,
                path=[each for each in sys.path if isinstance(each, str)],  # as imports have it
                backend=self._backend,
                grace=self._grace,
                metrics=self._metrics is not None,
                buffers=self._ports.buffers(),
            )
        )
        self._living.add(process)
        self._nursery.start_soon(self._live, process)
        return process

    async def _live(self, process: Process) -> None:
        try:
            await process.live()
        finally:
            self._living.discard(process)
            if process.killed and self._stopping:
                self._killed.append(process)

    async def _stop_one(self, process: Process) -> None:
        await process.stop(self._grace + KILL_SECONDS)
        if process.killed:
            _log.warning("%s had to be killed, since it did not end in time", process)

    def _give_up(self, why: str, status: int, details: str) -> None:
        if self._failure is None:
            self._failure = WorkersError(why, status)
            if details:  # once, not for each worker
                _log.error("%s", details.rstrip())
        self._stop()

    # -- signals

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == SIGHUP and not self._stopping:
                _log.info("%s: the workers are replaced one by one", name)
                self._hang_up.set()
            elif not self._stopping:
                _log.info("%s: the workers end", name)
                self._stop()
            elif number != SIGHUP:
                _log.warning("%s again: the workers are cut short", name)
                for process in list(self._living):
                    self._nursery.start_soon(process.cut_short, KILL_SECONDS)

    def _stop(self) -> None:
        self._stopping = True
        self._keeping.cancel()

    async def _roll(self) -> None:
        """Rolling restarts, one after the other."""
        while True:
            await self._hang_up.wait()
            # One that comes meanwhile begins another round: the program may have changed since.
            self._hang_up = trio.Event()
            try_notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            for slot in self._slots:
                if not await slot.replace(self._stop_one):
                    _log.error("the rolling restart ends here: the other workers are not replaced")
                    break
            else:
                _log.info("all workers were replaced")
            try_notify("READY=1")

    # -- metrics

    async def _open_page(self) -> list[trio.SocketListener]:
        if self._metrics is None:
            return []
        host, port = self._metrics
        listeners = await trio.open_tcp_listeners(port, host=host)
        _log.info("metrics on %s", name_address(listeners[0].socket.getsockname()))
        return listeners

    async def _page(self) -> bytes:
        from .series import Page

        answers: dict[int, list[Any] | None] = dict.fromkeys(range(len(self._slots)))

        async def ask(slot: Slot) -> None:
            process = slot.current
            answers[slot.number] = None if process is None else await process.metrics()

        async with trio.open_nursery() as nursery:
            for slot in self._slots:
                nursery.start_soon(ask, slot)
        restarts = {slot.number: slot.restarts for slot in self._slots}
        return Page(answers, restarts).text()


def _receive_signals() -> contextlib.AbstractContextManager[AsyncIterator[int]]:
    return trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, SIGHUP)
