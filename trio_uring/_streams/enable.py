"""Enabling: puts a whole trio program on the ring, for one run.

In an enabled run, everything that makes a trio socket makes a UringSocket, and everything that
makes a trio.SocketStream or trio.SocketListener makes one of ours. Two hooks do that. No name is
rebound, so names that a library imported earlier work as well:

- the `__init__` of trio's socket class, which runs however a trio socket is made (socket,
  socketpair, from_stdlib_socket, fromfd, accept, dup): in an enabled run the new socket becomes a
  UringSocket, which is a subclass;
- the metaclass of trio.SocketStream and trio.SocketListener: calling one of these classes with a
  socket of ours returns a stream or listener of ours.

trio's own hook, `trio.socket.set_custom_socket_factory`, is left to the user: there is only one,
and it serves only trio.socket.socket(). If a custom factory makes trio's own sockets, they become
ours as well; others (FakeNet's) stay what they are.

Rules of this file: both hooks are in place while any run is enabled, check in each call whether
*this* run is, and are removed when the last enabled run ends. Other runs, in other threads too, get
what they always got. A run whose backend is "off" is such a run, whoever enables it.
"""

from __future__ import annotations

import abc
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .._driver.backend import asks_for, check_backend
from .._driver.run import (
    check_ring,
    check_variables,
    check_way,
    note_enabled,
    request_backend,
    request_restricted,
    request_way,
    requested,
)
from .._sockets.uring_socket import UringSocket, become_ours
from .._trio import HAS_PLAIN_METACLASS, SocketType_, call_at_end
from .listeners import SocketListener
from .streams import SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    _Args = TypeVarTuple("_Args")

_T = TypeVar("_T")

# Libraries check isinstance(stream, trio.SocketStream), which has to hold for ours.
trio.SocketStream.register(SocketStream)
trio.SocketListener.register(SocketListener)

_NATIVE: dict[type, Callable[[UringSocket], object]] = {
    trio.SocketStream: SocketStream,
    trio.SocketListener: SocketListener,
}

_enabled: trio.lowlevel.RunVar[Enable | None] = trio.lowlevel.RunVar("trio_uring enabled")
_lock = threading.Lock()
_runs = 0  # how many enabled runs are going on
_stock_init = SocketType_.__init__
_trio_run = trio.run  # a program may put ours in its place


class Enable(trio.abc.Instrument):
    """An instrument that enables trio_uring in a run: ``trio.run(main,
    instruments=[trio_uring.Enable()])``.

    Every trio socket, trio.SocketStream and trio.SocketListener made in that run is one of ours,
    whoever makes it. One Enable may be given to several runs, one after another or at the same time
    in several threads.

    Args:
        backend: "uring", "readiness" or "auto", for this run; "off": this run stays trio's own, and
            classes of ours that it uses by name work by readiness. None: what the environment
            variable TRIO_URING_BACKEND says, or else auto.
        streams: False: sockets only; trio.SocketStream and trio.SocketListener stay trio's own
            classes, over our sockets.
        driver: how the run waits for its ring. "auto": the ring replaces trio's I/O manager as its
            event loop, if this version of trio allows that. "task": a system task waits for the
            ring, and an instrument enters the kernel; this uses only public interfaces of trio, and
            costs more: about 1.6 times the CPU at one connection. None: what the environment
            variable TRIO_URING_DRIVER says, or else auto.
        restrict: True: the kernel refuses, for this run's ring, every opcode that trio_uring does
            not use, and every further registration; where a ring cannot be restricted, none is
            used. The environment variable TRIO_URING_RESTRICT=1 says that for every run, and False
            does not take it back. By readiness there is nothing to restrict.

    Raises:
        ValueError: there is no such backend or driver, as an argument or in the environment.
        RingUnavailableError: "uring" was asked for, by the argument or else the environment, and
            io_uring cannot be used here.
    """

    def __init__(
        self,
        backend: str | None = None,
        *,
        streams: bool = True,
        driver: str | None = None,
        restrict: bool = False,
    ) -> None:
        # All of this here, because trio only logs what an instrument raises.
        check_variables()
        if backend is not None:
            check_backend(backend)
        if driver is not None:
            check_way(driver)
        check_ring(backend, restrict)
        self.backend = backend
        self.streams = streams
        self.driver = driver
        self.restrict = restrict

    def before_run(self) -> None:
        _start(self)


class EnableOnce(Enable):
    """One that nobody else has: its run, enabled or "off", keeps no instrument of ours."""

    def before_run(self) -> None:
        super().before_run()
        trio.lowlevel.remove_instrument(self)


def enable(
    backend: str | None = None,
    *,
    streams: bool = True,
    driver: str | None = None,
    restrict: bool = False,
) -> None:
    """Enables trio_uring in the current trio.run, from now until its end.

    Doing it twice is allowed.

    Args:
        backend, streams, driver, restrict: as in Enable.

    Raises:
        RuntimeError: this was called outside of trio, or trio_uring has already been used in this
            run with another backend or driver than the one asked for, or on a ring that is not
            restricted as asked for, or "off" is asked for in a run that is enabled already.
        ValueError, RingUnavailableError: as in Enable.
    """
    # What this run has asked for goes before the environment.
    chosen = backend or requested.get()
    _start(Enable(chosen, streams=streams, driver=driver, restrict=restrict))


def run(
    async_fn: Callable[[Unpack[_Args]], Awaitable[_T]],
    *args: Unpack[_Args],
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
    backend: str | None = None,
    driver: str | None = None,
    restrict: bool = False,
) -> _T:
    """Like trio.run, with trio_uring enabled: ``trio_uring.run(main)`` for ``trio.run(main)``.

    ``trio.run = trio_uring.run`` is allowed; `install` reaches further.

    Args:
        backend, driver, restrict: as in Enable. All others are those of trio.run.

    Raises:
        ValueError, RingUnavailableError: as in Enable.
        Others: whatever async_fn raises.
    """
    return _trio_run(
        async_fn,
        *args,
        clock=clock,
        instruments=[EnableOnce(backend, driver=driver, restrict=restrict), *instruments],
        restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
        strict_exception_groups=strict_exception_groups,
    )


class _RunAware(abc.ABCMeta):
    """The metaclass of trio.SocketStream and trio.SocketListener while a run is enabled."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        native, sock = _NATIVE.get(cls), kwargs.get("socket", args[0] if args else None)
        # Everything else, including wrong arguments, is left to trio.
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
    before = _enabled.get(None)
    if instrument.backend == "off" and before is not None:
        raise RuntimeError("this run is enabled already: ask for off before that")
    if instrument.backend is not None:
        request_backend(instrument.backend)
    if instrument.driver is not None:
        request_way(instrument.driver)
    if instrument.restrict:
        request_restricted()
    if before is not None or asks_for("off", instrument.backend or requested.get()):
        return
    _enabled.set(instrument)
    note_enabled()
    call_at_end(_stop)  # not after_run: the user could remove the Enable from the run
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
