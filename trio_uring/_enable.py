"""Enabling: the ring under a whole trio program, for one run.

Inside an enabled run, what makes a trio socket makes an UringSocket, and what makes a trio.SocketStream or trio.SocketListener
makes ours. Two things do that, and nothing is rebound, so names that a library imported earlier work as well:

- `_SocketType.__init__`, which is every way to a trio socket (socket, socketpair, from_stdlib_socket, fromfd, accept, dup): a
  socket that was made in an enabled run changes its class to UringSocket, which is a subclass;
- the metaclass of trio.SocketStream and trio.SocketListener, whose call gives ours for a socket of ours.

trio's own hook, `trio.socket.set_custom_socket_factory`, is left to the user: it is for trio.socket.socket() only, and there is
one of it. Sockets of a factory that makes trio's are ours as well; others (FakeNet's) stay what they are.

Rules of this file: both are in place while any enabled run goes on, ask in each call whether *this* run is one, and are taken
away with the last one. Other runs, in other threads too, get what they always got.
"""

from __future__ import annotations

import abc
import contextlib
import socket as stdlib_socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio._socket import _SocketType

from ._backend import check_backend, probe
from ._driver import current_driver, request_backend
from ._listeners import SocketListener
from ._socket import UringSocket
from ._streams import SocketStream

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
_stock_init = _SocketType.__init__


class Enable(trio.abc.Instrument):
    """Enables trio_uring in a trio.run that is given it: ``trio.run(main, instruments=[trio_uring.Enable()])``.

    Inside that run every trio socket, trio.SocketStream and trio.SocketListener that is made is one of ours, whoever makes it.
    It may be given to several runs, one after another or at the same time in several threads.

    Args:
        backend: "uring", "epoll" or "auto", for this run; None: as the environment variable TRIO_URING_BACKEND says, or auto.
        streams: False: sockets only; trio.SocketStream and trio.SocketListener stay trio's, over our sockets.

    Raises:
        ValueError: no such backend.
        RingUnavailableError: "uring" was asked for, and io_uring cannot be used here.
    """

    def __init__(self, backend: str | None = None, *, streams: bool = True) -> None:
        if backend is not None:
            check_backend(backend)
        if backend == "uring":
            probe(backend)  # here, because trio only logs what an instrument raises
        self.backend = backend
        self.streams = streams

    def before_run(self) -> None:
        if _start(self):
            trio.lowlevel.add_instrument(_Opening())


def enable(backend: str | None = None, *, streams: bool = True) -> None:
    """Enables trio_uring in the current trio.run, from now on to its end. Doing it twice is allowed.

    Args:
        backend, streams: as of Enable.

    Raises:
        RuntimeError: outside of trio; or trio_uring was used in this run already, with another backend than is asked for.
        ValueError, RingUnavailableError: as of Enable.
    """
    _start(Enable(backend, streams=streams))


def run(
    async_fn: Callable[[Unpack[_Args]], Awaitable[_T]],
    *args: Unpack[_Args],
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
    backend: str | None = None,
) -> _T:
    """As trio.run, with trio_uring enabled in it: ``trio_uring.run(main)`` for ``trio.run(main)``.

    Args:
        backend: as of Enable; all others are those of trio.run.

    Raises:
        ValueError, RingUnavailableError: as of Enable.
        Whatever async_fn raises.
    """
    return trio.run(
        async_fn,
        *args,
        clock=clock,
        instruments=[Enable(backend), *instruments],
        restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
        strict_exception_groups=strict_exception_groups,
    )


class _RunAware(abc.ABCMeta):
    """The metaclass of trio.SocketStream and trio.SocketListener while a run is enabled."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        native, sock = _NATIVE.get(cls), kwargs.get("socket", args[0] if args else None)
        # Everything else, wrong arguments too, is trio's affair.
        one = len(args) + len(kwargs) == 1
        if native is not None and one and isinstance(sock, UringSocket) and sock.type == stdlib_socket.SOCK_STREAM:
            here = _enabled_here()
            if here is not None and here.streams:
                return native(sock)
        return super().__call__(*args, **kwargs)


def _init_socket(self: _SocketType, sock: stdlib_socket.socket) -> None:
    _stock_init(self, sock)
    if type(self) is _SocketType and _enabled_here() is not None:
        self.__class__ = UringSocket


def _enabled_here() -> Enable | None:
    try:
        return _enabled.get(None)
    except RuntimeError:  # outside of trio
        return None


class _Opening(trio.abc.Instrument):
    """Makes the driver as soon as there can be one, so that its system tasks are there before anybody counts tasks.

    It must not raise: trio takes an instrument that raises out of the run, and fails itself when it is gone already.
    """

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery is not None:  # the first such is the main task
            with contextlib.suppress(KeyError):  # we are called again for the system tasks
                trio.lowlevel.remove_instrument(self)
            with contextlib.suppress(Exception):  # the first operation will say why
                current_driver()


class _End(trio.abc.Instrument):
    """Tells when an enabled run is over: the user, who has the Enable object, might take that one out of the run."""

    def after_run(self) -> None:
        _stop()


def _start(instrument: Enable) -> bool:
    """False: this run is enabled already."""
    global _runs
    if instrument.backend is not None:
        request_backend(instrument.backend)
    if _enabled.get(None) is not None:
        return False
    _enabled.set(instrument)
    trio.lowlevel.add_instrument(_End())
    with _lock:
        _runs += 1
        if _runs == 1:
            _SocketType.__init__ = _init_socket  # type: ignore[method-assign]
            for cls in _NATIVE:
                cls.__class__ = _RunAware
    return True


def _stop() -> None:
    global _runs
    with _lock:
        _runs -= 1
        if not _runs:
            _SocketType.__init__ = _stock_init  # type: ignore[method-assign]
            for cls in _NATIVE:
                cls.__class__ = abc.ABCMeta
