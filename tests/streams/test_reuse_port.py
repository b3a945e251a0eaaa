"""reuse_port: several listeners on one port.

Rules: the kernel chooses which of them gets a connection, so a test accepts on all of them.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import Any

import pytest
import trio
from support.streams import closing, until

from trio_uring import SocketListener, SocketStream, open_tcp_listeners, open_tcp_stream, serve_tcp


def option(listener: SocketListener, level: int, name: int) -> int:
    return listener.socket.getsockopt(level, name)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_two_listeners_on_one_port(host: str) -> None:
    [first] = await open_tcp_listeners(0, host=host, reuse_port=True)
    port = first.socket.getsockname()[1]
    [second] = await open_tcp_listeners(port, host=host, reuse_port=True)
    async with closing(first, second):
        assert [option(one, socket.SOL_SOCKET, socket.SO_REUSEPORT) for one in (first, second)] == [
            1,
            1,
        ]
        with pytest.raises(OSError, match="in use") as caught:
            await open_tcp_listeners(port, host=host)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("reuse_port", [True, False])
async def test_the_other_options_are_trios(reuse_port: bool) -> None:
    ours, trios = (
        await open_tcp_listeners(0, reuse_port=reuse_port),
        await trio.open_tcp_listeners(0),
    )
    async with closing(*ours, *trios):
        for mine, its in zip(ours, trios, strict=True):
            assert option(mine, socket.SOL_SOCKET, socket.SO_REUSEPORT) == reuse_port
            assert mine.socket.family == its.socket.family
            for level, name in (
                (socket.SOL_SOCKET, socket.SO_REUSEADDR),
                (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
            ):
                if level == socket.SOL_SOCKET or its.socket.family == socket.AF_INET6:
                    assert option(mine, level, name) == its.socket.getsockopt(level, name) == 1


async def test_one_port_for_both_families() -> None:
    """V6ONLY: the wildcard of IPv6 does not take the port of IPv4."""
    taken = []
    while len(taken) < 10:  # another process may have just that port of IPv6
        [four] = await open_tcp_listeners(0, host="0.0.0.0")
        async with closing(four):
            port = four.socket.getsockname()[1]
            try:
                [six] = await open_tcp_listeners(port, host="::")
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                taken.append(port)
                continue
            await six.aclose()
            return
    pytest.fail(f"the ports {taken} of IPv6 were all taken")


@pytest.mark.parametrize("supported", [True, False])
async def test_families_that_the_system_has_not(
    supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trio.socket.socket

    def sock(family: int, *args: Any) -> Any:
        if family == socket.AF_INET6 or not supported:
            raise OSError(errno.EAFNOSUPPORT, "not here")
        return real(family, *args)

    monkeypatch.setattr(trio.socket, "socket", sock)
    if supported:
        [listener] = await open_tcp_listeners(0)
        await listener.aclose()
    else:
        with pytest.raises(OSError, match="doesn't support") as caught:
            await open_tcp_listeners(0)
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert len(caught.value.__cause__.exceptions) == 2  # type: ignore[union-attr]


async def test_a_failure_at_the_second_address_closes_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, made = trio.socket.socket, []

    def sock(*args: Any) -> Any:
        if made:
            raise OSError(errno.EMFILE, "no more")
        made.append(real(*args))
        return made[0]

    monkeypatch.setattr(trio.socket, "socket", sock)
    with pytest.raises(OSError, match="no more"):
        await open_tcp_listeners(0)
    assert made[0].fileno() == -1


async def test_cancelled() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):
            await open_tcp_listeners(0)


async def test_two_servers_share_the_connections() -> None:
    """The kernel spreads them by a hash of their addresses: of 64 none for one of two servers has
    odds of 2**-63."""
    served = [0, 0]

    async def handler(index: int, stream: SocketStream) -> None:
        served[index] += 1
        await stream.send_all(b"x")

    async with trio.open_nursery() as nursery:
        port = 0
        for index in range(2):
            serve = partial(
                serve_tcp, partial(handler, index), port, host="127.0.0.1", reuse_port=True
            )
            [listener] = await nursery.start(serve)
            port = listener.socket.getsockname()[1]
        for _ in range(64):
            async with await open_tcp_stream("127.0.0.1", port) as client:
                assert await client.receive_some() == b"x"
        await until(lambda: sum(served) == 64, "all were served")
        assert min(served) > 0
        nursery.cancel_scope.cancel()
