"""Installing: every trio.run and guest run of a process is an enabled one.

Rules of this file: it opens nothing and changes no run that is going on. What a run asks for itself
goes first, and a run that is "off" stays off.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING, Any

from .._driver.backend import check_backend
from .._driver.run import check_way, enabled, requested, requested_way
from .._trio import give_every_run
from .enable import Enable, EnableOnce

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Where it is set, importing trio_uring installs it: `python -m trio_uring run` does that. The file
# _cli/site/sitecustomize.py, which imports nothing of this package, has its name too.
VARIABLE = "TRIO_URING_INSTALL"
_lock = threading.Lock()
_undo: Callable[[], None] | None = None


class _Default(EnableOnce):
    """Enables a run, with its own arguments only where the run has not asked for others."""

    def before_run(self) -> None:
        if requested.get() is not None or (self.backend == "off" and enabled.get()):
            self.backend = None
        if requested_way.get() is not None:
            self.driver = None
        super().before_run()


def _default(
    backend: str | None, streams: bool, driver: str | None, given: Sequence[Any]
) -> Enable:
    # Where the run asks for another one, this one need not be possible.
    asked = [each.backend for each in given if isinstance(each, Enable) and each.backend]
    backend = asked[-1] if asked else backend
    return _Default(backend, streams=streams, driver=driver)


def install(backend: str | None = None, *, streams: bool = True, driver: str | None = None) -> None:
    """Enables trio_uring in every trio.run and guest run that begins in this process from now on.

    It does not matter who calls trio.run, by which name, or in which thread. A forked child
    inherits it; another process does not: see `python -m trio_uring run` for these. Doing it twice
    is allowed; the last arguments hold. `uninstall` ends it.

    Args:
        backend, streams, driver: as in Enable; for each run that does not ask for another one.

    Raises:
        ValueError: there is no such backend or driver. (A wrong environment variable is a
            ValueError of the run that begins with it.)

    A run raises RingUnavailableError if "uring" was asked for here, and io_uring cannot be used.
    """
    global _undo
    if backend is not None:
        check_backend(backend)
    if driver is not None:
        check_way(driver)
    with _lock:
        if _undo is not None:
            _undo()
        _undo = give_every_run(functools.partial(_default, backend, streams, driver))


def install_if_asked() -> None:
    """Installs it if the environment asks for that."""
    if os.environ.get(VARIABLE, "") not in ("", "0"):
        install()


def uninstall() -> None:
    """Ends what `install` began; without it, does nothing. Runs that are going on stay enabled."""
    global _undo
    with _lock:
        if _undo is not None:
            _undo()
            _undo = None
