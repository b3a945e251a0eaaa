"""The ring's descriptor in trio's epoll.

trio's `wait_readable` arms a descriptor for one event, so that each pass with a completion costs a step of a task and an
epoll_ctl: a third of what an operation costs on a quiet ring. So it is registered with trio's epoll instance itself, once
and level-triggered, by a number of its own (a registration is of a number and a file), which trio passes over as one that
nobody waits for; the hooks reap. That instance is private: where it is not found, `wait_readable` it is.

Rules of this file: what is registered is drained in every pass, or taken out, or trio would not sleep. trio knows descriptors
by number: what it does late for one that was closed (a wait that is cancelled, `notify_closing`) hits whoever has the number
now. So it can disarm or remove our registration, and the watchdog puts that right.
"""

from __future__ import annotations

import contextlib
import os
import select

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT  # for the epoll instance


class Registration:
    """The ring's descriptor in the epoll instance of this trio.run."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._number = -1
        try:
            epoll: select.epoll = GLOBAL_RUN_CONTEXT.runner.io_manager._epoll
        except AttributeError:
            return
        try:
            self._number = os.dup(fd)
            epoll.register(self._number, select.EPOLLIN)
        except OSError:  # out of descriptors
            self.close()
        else:
            self._epoll = epoll

    async def wait(self) -> None:
        """Until the descriptor is readable; for ever, if the hooks are told of it."""
        if self._number < 0:
            await trio.lowlevel.wait_readable(self._fd)
        else:
            await trio.sleep_forever()

    def is_lost(self) -> bool:
        """Whether the descriptor wakes nobody. If it is by the registration, that is made anew."""
        if not _is_readable(self._fd):
            return True
        if self._number < 0 or _is_registered(self._epoll, self._number):
            return False
        with contextlib.suppress(OSError):
            try:
                self._epoll.modify(self._number, select.EPOLLIN)
            except FileNotFoundError:
                self._epoll.register(self._number, select.EPOLLIN)
        return True

    def end(self) -> None:
        if self._number >= 0:
            with contextlib.suppress(OSError, ValueError):  # trio may have closed its epoll
                self._epoll.unregister(self._number)
        self.close()

    def close(self) -> None:
        """In a forked child, no more than this: the registration is the parent's, whose epoll instance is shared."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)


def _is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def _is_registered(poller: select.epoll, number: int) -> bool:
    """Whether `number` is registered level-triggered, by what the kernel says: "tfd: 7 events: 19 ...", in hexadecimal."""
    try:
        with open(f"/proc/self/fdinfo/{poller.fileno()}", encoding="ascii") as lines:
            found = [line.split() for line in lines if line.startswith("tfd:")]
    except OSError:  # no /proc, or out of descriptors: nothing is known against it
        return True
    asked = select.EPOLLIN | select.EPOLLONESHOT
    return any(int(words[1]) == number and int(words[3], 16) & asked == select.EPOLLIN for words in found)
