"""Enabling: the ring under a whole trio program, for one run.

Inside an enabled run, what makes a trio socket makes an UringSocket, and what makes a
trio.SocketStream or trio.SocketListener makes ours. Two things do that, and nothing is rebound, so
names that a library imported earlier work as well:

- the `__init__` of trio's socket class, which is every way to a trio socket (socket, socketpair,
  from_stdlib_socket, fromfd, accept, dup): a socket that was made in an enabled run becomes an
  UringSocket, which is a subclass;
- the metaclass of trio.SocketStream and trio.SocketListener, whose call gives ours for a socket of
  ours.

trio's own hook, `trio.socket.set_custom_socket_factory`, is left to the user: it is for
trio.socket.socket() only, and there is one of it. Sockets of a factory that makes trio's are ours
as well; others (FakeNet's) stay what they are.

Rules of this file: both are in place while any enabled run goes on, ask in each call whether *this*
run is one, and are taken away with the last one. Other runs, in other threads too, get what they
always got.
"""

from __future__ import annotations

import abc
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .._driver.backend import check_backend, probe
from .._driver.run import check_way, request_backend, request_way
from .._sockets.uring_socket import UringSocket, become_ours
from .._trio import HAS_PLAIN_METACLASS, SocketType_, call_at_end
from .listeners import SocketListener
from .streams import SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    _Args = TypeVarTuple("_Args")

_T = TypeVar("_T")

# isinstance(stream, trio.SocketStream) holds for ours: libraries ask that.
trio.SocketStream.register(SocketStream)
trio.SocketListener.register(SocketListener)

_NATIVE: dict[type, Callable[[UringSocket], object]] = {
    trio.SocketStream: SocketStream,
    trio.SocketListener: SocketListener,
}

_enabled: trio.lowlevel.RunVar[Enable | None] = trio.lowlevel.RunVar("trio_uring enabled")
_lock = threading.Lock()
_runs = 0  # enabled ones that go on
_stock_init = SocketType_.__init__


class Enable(trio.abc.Instrument):
    """Enables trio_uring in a trio.run that is given it: ``trio.run(main,
    instruments=[trio_uring.Enable()])``.

    Inside that run every trio socket, trio.SocketStream and trio.SocketListener that is made is one
    of ours, whoever makes it. It may be given to several runs, one after another or at the same
    time in several threads.

    Args:
        backend: "uring", "readiness" or "auto", for this run; None: as the environment variable
            TRIO_URING_BACKEND says, or auto.
        streams: False: sockets only; trio.SocketStream and trio.SocketListener stay trio's, over
        our sockets.
        driver: how the run waits for its ring. "auto": the ring is trio's loop, in the place of its
            own I/O manager, where this trio can have it so. "task": a system task waits for it, and
            an instrument enters the kernel; nothing but public interfaces of trio is used for that.
            It costs more: about 1.6 times the CPU of one connection. None: as the environment
            variable TRIO_URING_DRIVER says, or auto.

    Raises:
        ValueError: no such backend, or no such driver.
        RingUnavailableError: "uring" was asked for, and io_uring cannot be used here.
    """

    def __init__(
        self, backend: str | None = None, *, streams: bool = True, driver: str | None = None
    ) -> None:
        if backend is not None:
            check_backend(backend)
        if driver is not None:
            check_way(driver)
        if backend == "uring":
            probe(backend)  # here, because trio only logs what an instrument raises
        self.backend = backend
        self.streams = streams
        self.driver = driver

    def before_run(self) -> None:
        _start(self)


def enable(backend: str | None = None, *, streams: bool = True, driver: str | None = None) -> None:
    """Enables trio_uring in the current trio.run, from now on to its end. Doing it twice is
    allowed.

    Args:
        backend, streams, driver: as of Enable.

    Raises:
        RuntimeError: outside of trio; or trio_uring was used in this run already, with another
            backend or driver than is asked for.
        ValueError, RingUnavailableError: as of Enable.
    """
    _start(Enable(backend, streams=streams, driver=driver))


def run(
    async_fn: Callable[[Unpack[_Args]], Awaitable[_T]],
    *args: Unpack[_Args],
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
    backend: str | None = None,
    driver: str | None = None,
) -> _T:
    """As trio.run, with trio_uring enabled in it: ``trio_uring.run(main)`` for ``trio.run(main)``.

    Args:
        backend, driver: as of Enable; all others are those of trio.run.

    Raises:
        ValueError, RingUnavailableError: as of Enable.
        Whatever async_fn raises.
    """
    return trio.run(
        async_fn,
        *args,
        clock=clock,
        instruments=[Enable(backend, driver=driver), *instruments],
        restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
        strict_exception_groups=strict_exception_groups,
    )


class _RunAware(abc.ABCMeta):
    """The metaclass of trio.SocketStream and trio.SocketListener while a run is enabled."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        native, sock = _NATIVE.get(cls), kwargs.get("socket", args[0] if args else None)
        # Everything else, wrong arguments too, is trio's affair.
        one = len(args) + len(kwargs) == 1
        if (
            native is not None
            and one
            and isinstance(sock, UringSocket)
            and sock.type == stdlib_socket.SOCK_STREAM
        ):
            here = _enabled_here()
            if here is not None and here.streams:
                return native(sock)
        return super().__call__(*args, **kwargs)


def _init_socket(self: SocketType_, sock: stdlib_socket.socket) -> None:
    _stock_init(self, sock)
    if type(self) is SocketType_ and _enabled_here() is not None:
        become_ours(self)


def _enabled_here() -> Enable | None:
    try:
        return _enabled.get(None)
    except RuntimeError:  # outside of trio
        return None


def _start(instrument: Enable) -> None:
    global _runs
    if instrument.backend is not None:
        request_backend(instrument.backend)
    if instrument.driver is not None:
        request_way(instrument.driver)
    if _enabled.get(None) is not None:
        return
    _enabled.set(instrument)
    call_at_end(_stop)  # the user, who has the Enable object, might take that one out of the run
    with _lock:
        _runs += 1
        if _runs == 1:
            SocketType_.__init__ = _init_socket  # type: ignore[method-assign]
            for cls in _NATIVE if HAS_PLAIN_METACLASS else ():
                cls.__class__ = _RunAware


def _stop() -> None:
    global _runs
    with _lock:
        _runs -= 1
        if not _runs:
            SocketType_.__init__ = _stock_init  # type: ignore[method-assign]
            for cls in _NATIVE if HAS_PLAIN_METACLASS else ():
                cls.__class__ = abc.ABCMeta
