"""All private names of trio that this package uses, and what is lost without each of them.

Rules of this file: importing never fails, whatever trio looks like. Each name is looked up once. If
one is missing, the table says what is lost, and the code that would use it does without.
`python -m trio_uring info` prints the table.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import importlib
import select
import socket as stdlib_socket
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

_RUN, _IO, _SOCKET = "trio._core._run", "trio._core._io_epoll", "trio._socket"

LOOP = "the ring is not trio's loop: a system task waits for it, as with TRIO_URING_DRIVER=task"
FORK = "a forked child that stays in its parent's run shares trio's epoll instance with it"
ACCELERATOR = "the accelerator: what it does in C is done in Python"
SOCKET = "nothing changes: the class is taken from what trio.socket.from_stdlib_socket returns"
HELPER = "sockets do not use the ring: they wait and move bytes as trio's do; streams still use it"
RESOLVE = "sockets that connect do not wait on the ring: they wait as trio's do"
METACLASS = "in an enabled run only the sockets are ours: trio's streams and listeners stay trio's"
SCHEDULER = "there are no repeatable runs: trio_uring.testing.run_deterministically refuses"
DETECTOR = (
    "TrioNetwork's stream does not notice when another task sends on the trio.SocketStream below it"
)
INSTALL = (
    "trio_uring.install() replaces trio.run and trio.lowlevel.start_guest_run: whoever imported "
    "these names from trio before keeps trio's own"
)
PLAIN = "no UDPSocket and no socket on the ring works: they need the plain socket within trio's"


class PrivateName(NamedTuple):
    """A private name of trio."""

    name: str
    found: bool
    lost: str
    """What does not work, or works differently, without it."""


def _find(module: str, name: str) -> Any:
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:
        return None
    return found


def _probe(module: str, lost: str, *names: str) -> list[PrivateName]:
    return [PrivateName(f"{module}.{n}", _find(module, n) is not None, lost) for n in names]


def _socket_class() -> type[trio.socket.SocketType]:
    """The class of trio's sockets, taken from one."""
    with stdlib_socket.socket() as sock:
        return type(trio.socket.from_stdlib_socket(sock))


# The class of trio's own sockets, from which trio_uring.UringSocket is derived.
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio._socket import _SocketType

    _More = Callable[[list[Any]], list[Any]]
    SocketType_ = _SocketType
else:
    SocketType_ = _find(_SOCKET, "_SocketType") or _socket_class()

# All of its methods that may wait go through this one, which we override.
HAS_NONBLOCKING_HELPER = hasattr(SocketType_, "_nonblocking_helper")

# The socket module's socket within a trio socket.
HAS_PLAIN_SOCKET = "_sock" in getattr(
    _find(_SOCKET, "_SocketType.__init__.__code__"), "co_names", ("_sock",)
)

# Resolves the address to connect or send to.
HAS_RESOLVE_ADDRESS = hasattr(SocketType_, "_resolve_address_nocp")

# An enabled run replaces the metaclass of these two classes with one derived from it.
_METACLASS_NAME = "the metaclass of trio.SocketStream and trio.SocketListener, abc.ABCMeta"
HAS_PLAIN_METACLASS = {type(trio.SocketStream), type(trio.SocketListener)} == {abc.ABCMeta}

# Both trio.run and start_guest_run make their run with it; with these arguments.
HAS_SETUP_RUNNER = getattr(_find(_RUN, "setup_runner.__code__"), "co_varnames", ())[:2] == (
    "clock",
    "instruments",
)

NAMES = [
    *_probe(_RUN, LOOP, "GLOBAL_RUN_CONTEXT", "Runner.io_manager", "Runner.is_guest"),
    *_probe(_IO, LOOP, *(f"EpollIOManager.{name}" for name in ("get_events", "process_events"))),
    *_probe(_IO, LOOP, "EpollIOManager.close", "EpollIOManager.force_wakeup"),
    *_probe(_IO, LOOP, "EpollIOManager.wait_readable", "EpollIOManager.wait_writable"),
    *_probe(_IO, LOOP, "EpollIOManager.notify_closing", "EpollIOManager.statistics"),
    *_probe(_IO, LOOP, "EpollIOManager._epoll"),
    *_probe(_IO, FORK, "EpollIOManager._registered", "EpollIOManager._force_wakeup"),
    *_probe(_IO, FORK, "EpollWaiters.current_flags"),
    *_probe(_RUN, ACCELERATOR, "Task.coro", "Task._next_send_fn", "Task._next_send"),
    *_probe(_RUN, ACCELERATOR, "Task._abort_func", "Task.custom_sleep_data", "Task._runner"),
    *_probe(_RUN, ACCELERATOR, "Task._cancel_status", "Task._cancel_points"),
    *_probe(_RUN, ACCELERATOR, "CancelStatus.effectively_cancelled"),
    *_probe(_RUN, ACCELERATOR, "Runner.runq", "Runner.instruments", "Runner.ki_pending"),
    *_probe("trio._core._traps", ACCELERATOR, "WaitTaskRescheduled", "CancelShieldedCheckpoint"),
    *_probe(_IO, ACCELERATOR, "EpollIOManager._update_registrations"),
    *_probe(_IO, ACCELERATOR, "EpollWaiters.read_task", "EpollWaiters.write_task"),
    *_probe(_SOCKET, SOCKET, "_SocketType"),
    PrivateName("trio._socket._SocketType._nonblocking_helper", HAS_NONBLOCKING_HELPER, HELPER),
    PrivateName("trio._socket._SocketType._resolve_address_nocp", HAS_RESOLVE_ADDRESS, RESOLVE),
    PrivateName(_METACLASS_NAME, HAS_PLAIN_METACLASS, METACLASS),
    *_probe(_RUN, SCHEDULER, "_ALLOW_DETERMINISTIC_SCHEDULING", "_r"),
    *_probe("trio._util", DETECTOR, "ConflictDetector.__enter__", "ConflictDetector.__exit__"),
    PrivateName(f"{_RUN}.setup_runner", HAS_SETUP_RUNNER, INSTALL),
    PrivateName("trio._socket._SocketType._sock", HAS_PLAIN_SOCKET, PLAIN),
]


def missing(lost: str) -> list[str]:
    """The missing names, of those that `lost` depends on."""
    return [private.name for private in NAMES if private.lost == lost and not private.found]


# -- sockets and streams


def plain_socket(sock: Any) -> Any:
    """The socket module's socket within a trio socket; None: there is none."""
    return getattr(sock, "_sock", None)


async def resolve(sock: Any, address: Any) -> Any:
    """The address that a trio socket would send to."""
    if not HAS_RESOLVE_ADDRESS:
        await trio.lowlevel.checkpoint()
        return address
    return await sock._resolve_address_nocp(address, local=False)


class _Detector:
    """Stands in for trio's ConflictDetector where that is missing."""

    _held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError("another task is currently sending data on this stream")
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


def send_detector(stream: trio.SocketStream) -> Any:
    """The context manager by which a trio.SocketStream notices that two tasks send on it.

    Its `_held` is true inside the block.
    """
    found = getattr(stream, "_send_conflict_detector", None)
    return found if hasattr(found, "_held") else _Detector()


# -- runs


def scheduler() -> Any:
    """The module with trio's random generator, which orders tasks; None: names are missing."""
    return None if missing(SCHEDULER) else importlib.import_module(_RUN)


_CAN_BE_LOOP, _CAN_RENEW = not missing(LOOP), not missing(FORK)
_context: Any = _find(_RUN, "GLOBAL_RUN_CONTEXT")
_EpollIOManager: Any = _find(_IO, "EpollIOManager")
# What the accelerator calls of trio's, while a task begins to wait.
_CALLED_IN_A_WAIT = (
    _find(_IO, "EpollWaiters.__init__"),
    _find("trio._core._traps", "WaitTaskRescheduled.__init__"),
)


def loop_runner() -> Any:
    """trio's runner of this run, if the ring can be its loop.

    None: it is a guest run, or trio's runner has another shape.
    """
    if not _CAN_BE_LOOP:
        return None
    runner = _context.runner
    waits_by_epoll = isinstance(trios_own(runner.io_manager), _EpollIOManager)
    return runner if waits_by_epoll and not runner.is_guest else None


def trios_own(manager: Any) -> Any:
    """trio's own I/O manager, inside ours."""
    while isinstance(manager, Manager):
        manager = manager.inner
    return manager


class Manager:
    """An I/O manager that replaces another one, and passes every call on to it.

    It has every method that trio uses. (A __getattr__ would make every look-up slower.)
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def get_events(self, timeout: float) -> Any:
        return self.inner.get_events(timeout)

    def process_events(self, events: Any) -> None:
        self.inner.process_events(events)

    def close(self) -> None:
        self.inner.close()

    def wait_readable(self, fd: Any) -> Any:
        return self.inner.wait_readable(fd)

    def wait_writable(self, fd: Any) -> Any:
        return self.inner.wait_writable(fd)

    def notify_closing(self, fd: Any) -> None:
        self.inner.notify_closing(fd)

    def force_wakeup(self) -> None:
        self.inner.force_wakeup()

    def statistics(self) -> Any:
        return self.inner.statistics()


def give_every_run(make: Callable[[Sequence[Any]], trio.abc.Instrument]) -> Callable[[], None]:
    """Gives every run of this process that begins from now on one more instrument, the last one.

    Args:
        make: makes the instrument, in the thread of the run, given those that the run has; what it
            raises, the run raises.

    Returns:
        what ends it: later runs begin as they did before.
    """
    if not HAS_SETUP_RUNNER:
        guests = _replace(trio.lowlevel, "start_guest_run", _with_instrument, make)
        return _both(_replace(trio, "run", _with_instrument, make), guests)
    return _replace(importlib.import_module(_RUN), "setup_runner", _with_second, make)


def _with_second(stock: Any, more: _More) -> Any:
    @functools.wraps(stock)
    def setup_runner(clock: Any, instruments: Any, *args: Any, **kwargs: Any) -> Any:
        return stock(clock, more(list(instruments)), *args, **kwargs)

    return setup_runner


def _with_instrument(stock: Any, more: _More) -> Any:
    @functools.wraps(stock)
    def run(*args: Any, instruments: Any = (), **kwargs: Any) -> Any:
        return stock(*args, instruments=more(list(instruments)), **kwargs)

    return run


def _replace(
    owner: Any, name: str, wrap: Callable[..., Any], make: Callable[[list[Any]], Any]
) -> Callable[[], None]:
    """Wraps a function of trio's; returns what undoes it, also if somebody wraps it once more."""
    stock, wanted = getattr(owner, name), [make]
    ours = wrap(stock, lambda given: [*given, *(each(given) for each in wanted)])
    setattr(owner, name, ours)

    def undo() -> None:
        wanted.clear()
        if getattr(owner, name) is ours:
            setattr(owner, name, stock)

    return undo


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        one()
        other()

    return call


class _AtEnd(trio.abc.Instrument):
    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def after_run(self) -> None:
        self._function()


def call_at_end(function: Callable[[], object]) -> None:
    """Calls a function at the end of this trio.run. It must not raise.

    An I/O manager does it where possible, since an instrument is visible: some of trio's own tests
    look for hooks.
    """
    if not _CAN_BE_LOOP:
        trio.lowlevel.add_instrument(_AtEnd(function))
        return
    runner = _context.runner
    runner.io_manager = _Ending(runner.io_manager, function)


class _Ending(Manager):
    """Calls a function before it closes."""

    def __init__(self, inner: Any, function: Callable[[], object]) -> None:
        super().__init__(inner)
        self._function = function

    def close(self) -> None:
        try:
            self._function()
        finally:
            super().close()


def epoll_fileno(manager: Any) -> int:
    """The descriptor of the epoll instance of trio's own manager."""
    return int(trios_own(manager)._epoll.fileno())


def epoll_manager() -> Any:
    """trio's own manager of this run, for the accelerator; None: it has another shape."""
    if missing(ACCELERATOR):
        return None
    for called in _CALLED_IN_A_WAIT:
        _protect(called)
    manager = trios_own(_context.runner.io_manager)
    return manager if isinstance(manager, _EpollIOManager) else None


def _protect(function: Any) -> None:
    """Has a KeyboardInterrupt wait until `function`, which the accelerator calls, has returned.

    trio's wait_readable protects what it calls. In the place of its frame, the accelerator has
    none, and the KeyboardInterrupt would be raised in the middle of a registration, and lost.
    """
    if hasattr(function, "__code__"):  # a function of C's is not interrupted
        trio.lowlevel.enable_ki_protection(function)


def stop_waiting(manager: Any, fd: int, reading: bool) -> None:
    """Withdraws the task that the accelerator has registered with trio's manager."""
    waiters = manager._registered[fd]
    if reading:
        waiters.read_task = None
    else:
        waiters.write_task = None
    manager._update_registrations(fd)


def renew_epoll(manager: Any) -> None:
    """Called in a forked child: gives trio's I/O manager an epoll instance that only it has.

    The old one is shared with the parent.
    """
    if sys.platform != "linux" or not _CAN_RENEW:
        return
    manager = trios_own(manager)
    shared, manager._epoll = manager._epoll, select.epoll()
    shared.close()
    manager._epoll.register(manager._force_wakeup.wakeup_sock, select.EPOLLIN)
    for fd, waiters in manager._registered.items():
        with contextlib.suppress(OSError):
            manager._epoll.register(fd, waiters.current_flags | select.EPOLLONESHOT)
