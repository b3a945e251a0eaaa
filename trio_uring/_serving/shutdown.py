"""Shutdown: a server is asked to end, and has some time for it.

It is a flag with two kinds of cancel scope: those that are cancelled when it is raised, and those
that are cancelled when the time is up. Servers, workers and programs share one.

Rules of this file: it knows trio, and nothing else of this package's servers. `start` and
`cut_short` may be called from anywhere, even by a signal handler that has interrupted trio itself:
they set flags, and trio looks at these in its own time.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import trio

from .._bytes.timed import check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import FrameType


class Shutdown:
    """Asks servers to end gracefully: no new connections, and some time for those that there are.

    Give one to `serve_tcp` and its siblings, and to as many of them as you like. It belongs to one
    trio.run, may be made before it, and cannot be used a second time once it has been started.

    Args:
        grace: seconds from the start until what is left is cancelled; math.inf: it is not.
        quiet: seconds after which a connection whose handler is waiting for the next byte counts
            as idle, and is ended.

    Raises:
        ValueError: a number of seconds is negative or not a number.
    """

    def __init__(self, *, grace: float = 10.0, quiet: float = 0.2) -> None:
        check_timeout(grace)
        check_timeout(quiet)
        self.grace: float = grace
        self.quiet: float = quiet
        self._started = False
        self._cut = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._deadline = math.inf
        self._on_start: set[trio.CancelScope] = set()
        self._after_grace: set[trio.CancelScope] = set()

    def __repr__(self) -> str:
        state = "started" if self._started else "not started"
        return f"<Shutdown grace={self.grace!r} quiet={self.quiet!r}, {state}>"

    @property
    def started(self) -> bool:
        """Whether it was started."""
        return self._started

    def start(self) -> None:
        """Starts it; doing that again changes nothing.

        It may be called anywhere: in a task, by a signal handler, in another thread. Scopes and
        tasks notice in trio's next pass.
        """
        self._started = True
        self._tell_soon()

    def cut_short(self) -> None:
        """Ends the time of grace now: what is left is cancelled. Starts it first, if need be.

        It may be called anywhere, like `start`.
        """
        self._started = self._cut = True
        self._tell_soon()

    async def wait(self) -> None:
        """Waits until it is started.

        Cancellation: it stops waiting.
        """
        with self.cancel_on_start():
            await trio.sleep_forever()

    def cancel_on_start(self) -> AbstractContextManager[trio.CancelScope]:
        """A cancel scope that is cancelled when it is started, or was before."""
        return self._scope(self._on_start)

    def cancel_after_grace(self) -> AbstractContextManager[trio.CancelScope]:
        """A cancel scope that is cancelled when the time of grace is over, `grace` seconds after
        the start."""
        return self._scope(self._after_grace)

    @contextlib.contextmanager
    @trio.lowlevel.enable_ki_protection  # a Control-C halfway would leave handlers behind
    def on_signals(self, *signals: signal.Signals) -> Iterator[None]:
        """Within the block, the first of these signals starts it, and the next cuts it short.

        The next signals also go to whatever handled them before, if that is a function: so a second
        Control-C (SIGINT) raises KeyboardInterrupt, by trio's rules.

        In a child that is forked within the block (os.fork, multiprocessing), a signal does what
        it would have done without this.

        Raises:
            RuntimeError: outside of trio.
            ValueError: this is not the main thread, or there is no such signal.
        """
        self._token = trio.lowlevel.current_trio_token()
        handler = _Handler(self)
        try:
            for number in dict.fromkeys(signals):
                handler.take(number)
            yield
        finally:
            for taken in handler.taken:
                taken.give_back()

    # -- in trio's own time

    @contextlib.contextmanager
    def _scope(self, scopes: set[trio.CancelScope]) -> Iterator[trio.CancelScope]:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            scopes.add(scope)
            try:
                # Only now: a thread that starts it meanwhile either is seen here, or sees the
                # token.
                if self._started:
                    self._tell()
                yield scope
            finally:
                scopes.discard(scope)

    def _tell_soon(self) -> None:
        token = self._token
        if token is None:
            try:
                token = trio.lowlevel.current_trio_token()
            except RuntimeError:
                return  # nobody waits for it yet
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        """Cancels what is to be cancelled by now."""
        now = trio.current_time()
        if self._deadline == math.inf:
            self._deadline = now + self.grace
        if self._cut:
            self._deadline = min(self._deadline, now)
        # Copies: what is cancelled may leave at once.
        for scope in list(self._on_start):
            scope.cancel()
        for scope in list(self._after_grace):
            scope.deadline = min(scope.deadline, self._deadline)


class _Handler:
    """What `on_signals` makes of signals."""

    def __init__(self, shutdown: Shutdown) -> None:
        self.taken: list[Taken] = []
        self._shutdown = shutdown
        self._came = False

    def take(self, number: int) -> None:
        self.taken.append(Taken(number, self))

    def __call__(self, number: int, frame: FrameType | None) -> None:
        taken = next((each for each in self.taken if each.number == number), None)
        if taken is not None and not taken.in_force:
            taken.pass_on(frame)
        elif not self._came:
            self._came = True
            self._shutdown.start()
        else:
            self._shutdown.cut_short()
            if taken is not None and callable(taken.before):
                taken.before(number, frame)


class Taken:
    """A signal that has a handler in this process, and not in the children that it forks.

    There, the kernel has to know what the signal does: Python runs a handler only once a blocking
    call has returned, and one that begins just after the signal came does not return for it.

    Attributes:
        before: the earlier handler, as signal.getsignal names it.

    Raises:
        ValueError: this is not the main thread, or there is no such signal.
    """

    def __init__(self, number: int, handler: Callable[[int, FrameType | None], object]) -> None:
        _watch_forks()
        self.number = number
        self.handler = handler
        self.before: Any = signal.getsignal(number)
        # It is in the list whenever the handler is installed: another thread may fork at any point.
        _taken.append(self)
        try:
            signal.signal(number, handler)
        except BaseException:
            _taken.remove(self)
            raise

    @property
    def in_force(self) -> bool:
        """Whether it was not given back, and this is no forked child."""
        return self in _taken

    def give_back(self) -> None:
        """Puts the earlier handler back, unless that was done already, as in a forked child."""
        if not self.in_force:
            return
        for above in _taken:
            if above.number == self.number and above.before is self.handler:
                above.before = self.before
                break
        else:
            # None: a handler that was not made in Python, which nobody can put back.
            signal.signal(self.number, signal.SIG_DFL if self.before is None else self.before)
        _taken.remove(self)

    def pass_on(self, frame: FrameType | None) -> None:
        """Does what the signal would do without it; for a handler that the program has put over
        this one, and that a forked child keeps."""
        if callable(self.before):
            self.before(self.number, frame)
        elif self.before is not signal.SIG_IGN:
            signal.signal(self.number, signal.SIG_DFL)
            os.kill(os.getpid(), self.number)


_taken: list[Taken] = []  # in the order in which they were taken
_forking = threading.local()  # `mask`: the signal mask of a thread before it forked


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):  # which Windows lacks, as it lacks forks
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_give_all_back)


# Handlers of other signals may raise in the midst of these: no signal is to stay held for it.


@trio.lowlevel.enable_ki_protection
def _hold() -> None:
    """What comes for the child before its handlers are given back waits until they are."""
    if sys.platform != "win32":  # a type checker knows what is there
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        numbers = {taken.number for taken in _taken.copy()}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@trio.lowlevel.enable_ki_protection
def _release() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if sys.platform != "win32" and mask is not None:  # None: `_hold` did not come so far
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@trio.lowlevel.enable_ki_protection
def _give_all_back() -> None:
    try:
        for taken in reversed(_taken.copy()):
            # Whoever has put a handler of his own over this one keeps it.
            if signal.getsignal(taken.number) is taken.handler:
                taken.give_back()
    finally:
        _taken.clear()
        _release()
