"""What the tests of a refused io_uring share: a run that falls back, one that may not, and the
messages.

Rules of this file: it is used only in child processes, which ask for "auto", whatever the tests run
on.
"""

from __future__ import annotations

import logging
import os
import socket

import pytest
import trio

import trio_uring
from trio_uring._driver import backend as _backend
from trio_uring._driver import run as _driver


class Told(logging.Handler):
    """What is logged at INFO."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []
        logger = logging.getLogger("trio_uring")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


async def works() -> None:
    """Connects and accepts, sends a list, receives, waits and is cancelled."""
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    left = await trio_uring.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    async with left, await listener.accept() as right, listener:
        with trio.move_on_after(0.01) as scope:
            await right.receive_some()
        assert scope.cancelled_caught
        await left.send_all([b"wor", b"ks"])
        assert await right.receive_exactly(5) == b"works"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_all, bytes(2**24))
            assert len(await right.receive_exactly(2**24)) == 2**24


async def falls_back(says: str) -> None:
    chosen = trio_uring.backend_info()
    await works()
    assert trio_uring.backend_info() == chosen
    assert (chosen.backend, chosen.requested, chosen.setup_flags) == ("readiness", "auto", ())
    check_sentence(chosen.reason, says)
    statistics = trio_uring.current_statistics()
    assert (statistics.backend, statistics.in_flight) == ("readiness", 0)


async def asked_for() -> None:
    _driver.requested.set("uring")
    ours, theirs = socket.socketpair()
    with theirs:
        stream = trio_uring.SocketStream(ours)
        try:
            await stream.send_all(b"x")
        finally:
            with pytest.raises(trio_uring.RingUnavailableError):
                trio_uring.current_statistics()
            await stream.aclose()


def check_sentence(text: str | None, *says: str) -> None:
    assert text is not None
    for each in says:
        assert each in text, text
    assert len(text.split()) > 6, text


def auto() -> Told:
    """This process asks for "auto" and has not looked at io_uring yet."""
    os.environ.pop(_backend.VARIABLE, None)
    _backend._Memory.forget()
    return Told()
