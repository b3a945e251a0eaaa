"""Streams that nobody closed: they warn, as sockets do, and their descriptors do not stay open.

Rules: a descriptor is identified by what it refers to, since its number may have been reused.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from typing import Any

import pytest
import trio
from support.streams import unix_sockets

from trio_uring import ReceiveStream, SocketStream


async def forget(streams: list[Any]) -> None:
    streams.clear()
    # trio's loop holds on to the last operation for as long as this step runs.
    await trio.lowlevel.checkpoint()
    gc.collect()


def link(fd: int) -> str | None:
    return os.readlink(f"/proc/self/fd/{fd}") if os.path.islink(f"/proc/self/fd/{fd}") else None


async def used_stream(kind: str) -> tuple[list[Any], int, int]:
    """A stream that has received, alone in a list, its descriptor, and its peer's."""
    if kind == "socket":
        left, right = unix_sockets()
        stream: Any = SocketStream(left)
        peer = right.detach()
    else:
        read, peer = os.pipe()
        stream = ReceiveStream(read)
    os.write(peer, b"x")
    assert await stream.receive_some() == b"x"
    return [stream], stream._lease.fd, peer


@pytest.mark.cpython_only("PyPy counts no references: a forgotten stream is freed at a collection")
@pytest.mark.parametrize("kind", ["socket", "pipe"])
async def test_a_forgotten_stream_warns_and_closes(kind: str) -> None:
    streams, fd, peer = await used_stream(kind)
    before = link(fd)
    with pytest.warns(ResourceWarning, match="unclosed"):
        await forget(streams)
    assert link(fd) != before
    os.close(peer)


@pytest.mark.cpython_only("PyPy counts no references: a forgotten stream is freed at a collection")
@pytest.mark.parametrize("kind", ["socket", "pipe"])
async def test_a_forgotten_stream_closes_though_the_warning_is_an_error(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, fd, peer = await used_stream(kind)
    before, raised = link(fd), []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook_args: raised.append(hook_args.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await forget(streams)
    os.close(peer)
    assert raised == [ResourceWarning]
    assert link(fd) != before
