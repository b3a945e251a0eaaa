"""ProxyListener: who is believed, what a header says, and that no byte behind it is lost.

Rules of this file: headers are written by hand here, as the specification has them, so that the
parser is not tested against its own package. What time decides is decided by a MockClock.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.served import Door, Listening, ask, echo, reset, serving
from support.streams import closing, receive_all, unix_sockets
from trio.testing import wait_all_tasks_blocked

from trio_uring import (
    ProxyListener,
    ProxyStream,
    Shutdown,
    SocketListener,
    SocketStream,
    copy_stream,
    open_tcp_listeners,
    open_tcp_stream,
    open_unix_listeners,
    open_unix_socket,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

pytest.importorskip("proxyprotocol")

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\r\n"
CLIENT, TARGET = ("192.0.2.7", 54321), ("198.51.100.1", 443)
MANY = 300


def version_2(payload: bytes, family: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(payload)) + payload


def inet(source: str, target: str, ports: tuple[int, int], extra: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    packed = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    payload = packed + struct.pack("!HH", *ports) + extra
    return version_2(payload, 0x21 if ":" in source else 0x11)


V2 = inet("192.0.2.7", "198.51.100.1", (54321, 443))


class Handler:
    """Echoes, and notes who the clients are."""

    def __init__(self) -> None:
        self.clients: list[Any] = []

    async def __call__(self, stream: Any) -> None:
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self.clients.append((transport.remote_address, transport.local_address))
        await echo(stream)


@contextlib.asynccontextmanager
async def proxied(
    handler: Any, trusted: Any = ("unix:",), options: Any = (), **limits: Any
) -> AsyncIterator[Door]:
    door = Door()
    listener = ProxyListener(Listening(door), trusted=trusted, **dict(options))
    async with listener, serving(handler, listener, **limits):
        yield door


# -- what a header says

HEADERS = {
    "version 1": (V1, (CLIENT, TARGET)),
    "version 1, IPv6": (
        b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 1\r\n",
        (("2001:db8::1", 65535), ("2001:db8::2", 1)),
    ),
    "version 1, the longest": (
        b"PROXY TCP6 %s %s 65535 65535\r\n" % ((b"ffff:" * 7 + b"ffff",) * 2),
        (("ffff:" * 7 + "ffff", 65535),) * 2,
    ),
    "version 1, unknown": (b"PROXY UNKNOWN\r\n", ("", "")),
    "version 1, unknown with more": (b"PROXY UNKNOWN a b c d\r\n", ("", "")),
    "version 2": (V2, (CLIENT, TARGET)),
    "version 2, IPv6": (
        inet("2001:db8::1", "2001:db8::2", (1, 2)),
        (("2001:db8::1", 1), ("2001:db8::2", 2)),
    ),
    "version 2, Unix": (
        version_2(b"/run/client".ljust(108, b"\0") + b"/run/target".ljust(108, b"\0"), 0x31),
        ("/run/client", "/run/target"),
    ),
    "version 2, local": (version_2(b"", 0x00, 0x20), ("", "")),
    "version 2, local with addresses": (version_2(V2[16:], 0x11, 0x20), ("", "")),
    "version 2, unspecified": (version_2(b"", 0x00), ("", "")),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_every_header_in_every_piece(name: str) -> None:
    """In one piece with what follows, cut anywhere, and byte by byte."""
    header, addresses = HEADERS[name]
    handler = Handler()
    async with proxied(handler) as door:
        for cut in range(len(header) + 1):
            async with door.knock() as client:
                await client.send_all(header[:cut])
                await wait_all_tasks_blocked()
                await client.send_all(header[cut:] + b"hello")
                assert await client.receive_exactly(5) == b"hello"
                await ask(client)
        async with door.knock() as client:
            for byte in header:
                await client.send_all(bytes([byte]))
                await wait_all_tasks_blocked()
            await ask(client, b"\n" + header)
    assert handler.clients == [addresses] * (len(header) + 2)


async def test_what_follows_is_all_there() -> None:
    """More than one receive holds, right behind the header."""
    body = bytes(range(256)) * 2000
    for header in (V1, V2):
        async with proxied(Handler()) as door, door.knock() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, header + body)
                assert await client.receive_exactly(len(body)) == body


async def test_extensions_of_version_2() -> None:
    extra: list[Any] = []

    async def handler(stream: ProxyStream) -> None:
        extra.append(dict(stream.proxy_extra))

    sent = b"\x02\0\x0bexample.org" + b"\x04\x03\xe8" + bytes(1000) + b"\xe0\0\1x"
    async with proxied(handler) as door:
        for header in (inet("192.0.2.7", "198.51.100.1", (1, 2), sent), V2, V1):
            async with door.knock() as client:
                await client.send_all(header)
                assert await receive_all(client) == b""
    assert extra == [{0x02: b"example.org", 0x04: bytes(1000), 0xE0: b"x"}, {}, {}]


async def test_a_checksum() -> None:
    crc32c = pytest.importorskip("crc32c").crc32c
    handler = Handler()
    blank = inet("192.0.2.7", "198.51.100.1", (54321, 443), b"\x03\0\4" + bytes(4))
    right = blank[:-4] + struct.pack("!L", crc32c(blank))
    wrong = blank[:-4] + struct.pack("!L", crc32c(blank) ^ 1)
    async with proxied(handler) as door, door.knock() as good, door.knock() as bad:
        await bad.send_all(wrong)
        assert await receive_all(bad) == b""
        await good.send_all(right)
        await ask(good)
    assert handler.clients == [(CLIENT, TARGET)]


# -- what is no header

MALFORMED = {
    "not a proxy": b"GET / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\0\1\0\1\xfc\x03\x03",
    "version 1, too long": b"PROXY UNKNOWN " + b"x" * 100,
    "version 1, line end": b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\n",
    "version 1, address": b"PROXY TCP4 192.0.2.700 198.51.100.1 54321 443\r\n",
    "version 1, name": b"PROXY TCP4 localhost 198.51.100.1 54321 443\r\n",
    "version 1, not ASCII": b"PROXY TCP4 192.0.2.\xff 198.51.100.1 54321 443\r\n",
    "version 1, port": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
    "version 1, family": b"PROXY TCP5 192.0.2.7 198.51.100.1 54321 443\r\n",
    "version 1, too few": b"PROXY TCP4 192.0.2.7\r\n",
    "version 1, too many": b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443 1\r\n",
    "version 1, of the other family": b"PROXY TCP4 ::1 ::1 54321 443\r\n",
    "version 2, signature": SIGNATURE[:8] + b"QUIX" + V2[12:],
    "version 3": SIGNATURE + b"\x31" + V2[13:],
    "version 2, command": SIGNATURE + b"\x2f" + V2[13:],
    "version 2, too short": version_2(b"\1" * 11),
    "version 2, too long": SIGNATURE + b"\x21\x11\xff\xff" + bytes(100),
    "version 2, Unix, not ASCII": version_2(b"\xff" * 216, 0x31),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_header_closes_only_its_connection(
    name: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    handler = Handler()
    async with proxied(handler, max_connections=2) as door, door.knock() as good:
        await good.send_all(V1)
        await ask(good)
        for _ in range(3):
            async with door.knock() as bad:
                with contextlib.suppress(trio.BrokenResourceError):
                    await bad.send_all(MALFORMED[name])
                    assert await receive_all(bad) == b""
        await ask(good)
    assert trio.current_time() == 0  # nothing was waited for
    assert handler.clients == [(CLIENT, TARGET)]
    records = [record for record in caplog.records if "no valid PROXY header" in record.message]
    assert [record.levelno for record in records] == [logging.WARNING] * 3


async def test_ends_within_a_header(caplog: pytest.LogCaptureFixture) -> None:
    """A balancer's health check says nothing: that is no reason to warn."""
    caplog.set_level(logging.DEBUG, "trio_uring")
    handler = Handler()
    async with proxied(handler) as door:
        for cut in (0, 1, 8, 20, len(V1) - 1):
            async with door.knock() as client:
                await client.send_all(V1[:cut])
                await client.send_eof()
                assert await receive_all(client) == b""
    assert handler.clients == []
    levels = [record.levelno for record in caplog.records if "PROXY" in record.message]
    assert levels == [logging.DEBUG] + [logging.WARNING] * 4


async def test_slow_headers_keep_nobody_waiting(autojump_clock: MockClock) -> None:
    handler = Handler()
    async with proxied(handler, options={"timeout": 5}) as door:
        slow = [door.knock() for _ in range(MANY)]
        async with closing(*slow):
            for at, client in enumerate(slow):
                await client.send_all(V1[: at % len(V1)])
            async with door.knock() as good:
                await good.send_all(V1)
                await ask(good)
                assert trio.current_time() == 0
            await trio.sleep(4)
            for at, client in enumerate(slow):
                # A byte now and then buys no time: the limit is for the whole header.
                await client.send_all(V1[at % len(V1) :][:1])
            late = [at for at in range(MANY) if at % len(V1) == len(V1) - 1]
            for at, client in enumerate(slow):
                if at in late:
                    await ask(client)
                else:
                    assert await receive_all(client) == b""
            assert trio.current_time() == 5
    assert len(handler.clients) == 1 + len(late)


# -- who is believed


@pytest.mark.parametrize(
    ("host", "trusted", "believed"),
    [
        ("127.0.0.1", ["127.0.0.1"], True),
        ("127.0.0.1", ["10.0.0.0/8", "127.0.0.0/8"], True),
        ("127.0.0.1", ["10.0.0.0/8", "::/0", "unix:"], False),
        ("::1", ["::1"], True),
        ("::1", ["0.0.0.0/0"], False),
    ],
)
@pytest.mark.parametrize("untrusted", ["refuse", "pass"])
async def test_only_who_is_trusted(
    host: str, trusted: list[str], believed: bool, untrusted: Any
) -> None:
    handler = Handler()
    [inner] = await open_tcp_listeners(0, host=host)
    listener = ProxyListener(inner, trusted=trusted, untrusted=untrusted)
    port = listener.socket.getsockname()[1]
    async with serving(handler, listener):
        for _ in range(2):
            client = await open_tcp_stream(host, port)
            own = client.socket.getsockname()[:2]
            async with client:
                if believed:
                    await client.send_all(V2)
                    await ask(client)
                    assert handler.clients.pop() == (CLIENT, TARGET)
                elif untrusted == "pass":
                    await ask(client, V2)  # which is no header, but what the client sends
                    assert handler.clients.pop() == (own, (host, port))
                else:
                    with contextlib.suppress(trio.BrokenResourceError):
                        assert await receive_all(client) == b""
    assert handler.clients == []


async def test_ipv4_on_an_ipv6_socket() -> None:
    handler = Handler()
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    listener = ProxyListener(SocketListener(sock), trusted=["127.0.0.0/8"])
    async with serving(handler, listener):
        async with await open_tcp_stream("127.0.0.1", sock.getsockname()[1]) as client:
            await client.send_all(V1)
            await ask(client)
    assert handler.clients == [(CLIENT, TARGET)]


async def test_unix_sockets(tmp_path: Path) -> None:
    handler, path = Handler(), tmp_path / "socket"
    for trusted in (["unix:"], ["127.0.0.1"]):
        [inner] = await open_unix_listeners(path)
        async with serving(handler, ProxyListener(inner, trusted=trusted)):
            async with await open_unix_socket(path) as client:
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send_all(V1)
                    await ask(client)
    assert handler.clients == [(CLIENT, TARGET)]


async def test_who_is_refused_is_logged_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_uring")
    [inner] = await open_tcp_listeners(0, host="127.0.0.1")
    listener = ProxyListener(inner, trusted=["10.0.0.0/8"])
    async with serving(echo, listener):
        for _ in range(3):
            client = await open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            async with client:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await receive_all(client) == b""
    records = [record for record in caplog.records if "not trusted" in record.message]
    assert [record.levelno for record in records] == [logging.WARNING] + [logging.DEBUG] * 2
    assert "127.0.0.1" in records[0].message


async def test_resets_in_the_queue_of_the_listener(caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler()
    for untrusted in ("refuse", "pass"):
        [inner] = await open_tcp_listeners(0, host="127.0.0.1")
        port = inner.socket.getsockname()[1]
        for _ in range(10):
            reset(socket.create_connection(("127.0.0.1", port)))
        listener = ProxyListener(inner, trusted=["127.0.0.1"], untrusted=untrusted)  # type: ignore
        async with serving(handler, listener, first_byte_timeout=60):
            async with await open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(V1)
                await ask(client)
    assert handler.clients == [(CLIENT, TARGET)] * 2
    assert caplog.text == ""  # whoever is gone is no reason to warn


# -- other servers


@contextlib.asynccontextmanager
async def accepted(**options: Any) -> AsyncIterator[tuple[SocketStream, ProxyStream]]:
    """A client, and its connection before the header has come."""
    door = Door()
    async with ProxyListener(Listening(door), trusted=["unix:"], **options) as listener:
        client = door.knock()
        stream = await listener.accept()
        async with client, stream:
            yield client, stream


CALLS: dict[str, Any] = {
    "receive_some": lambda stream: stream.receive_some(),
    "receive_into": lambda stream: stream.receive_into(bytearray(5)),
    "receive_exactly": lambda stream: stream.receive_exactly(5),
    "send_all": lambda stream: stream.send_all(b"hello"),
    "a list": lambda stream: stream.send_all([b"he", b"llo"]),
    "wait_send_all_might_not_block": lambda stream: stream.wait_send_all_might_not_block(),
    "send_eof": lambda stream: stream.send_eof(),
    "copy_stream": lambda stream: copy_stream(stream, stream),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_first_call_receives_the_header(name: str) -> None:
    async with accepted() as (client, stream), trio.open_nursery() as nursery:
        nursery.start_soon(CALLS[name], stream)
        await wait_all_tasks_blocked()
        assert not client.socket.is_readable()  # nothing is sent before
        with pytest.raises(RuntimeError, match="receive_header"):
            _ = stream.remote_address
        await client.send_all(V1 + b"hello")
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert (stream.remote_address, stream.local_address) == (CLIENT, TARGET)
        assert type(stream) is ProxyStream
        nursery.cancel_scope.cancel()


async def test_afterwards_nothing_is_in_the_way() -> None:
    overridden = {name for name in vars(ProxyStream) if hasattr(SocketStream, name)}
    assert {name for name in overridden if not name.startswith("_")} == set()


async def test_sending_and_receiving_both_wait_for_it() -> None:
    async with accepted() as (client, stream), trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await stream.receive_exactly(5))

        nursery.start_soon(receive)
        nursery.start_soon(stream.send_all, b"hello")
        await wait_all_tasks_blocked()
        await client.send_all(V2 + b"world")
        assert await client.receive_exactly(5) == b"hello"
        await wait_all_tasks_blocked()
        assert got == [b"world"]


async def test_a_cancelled_call_loses_nothing(autojump_clock: MockClock) -> None:
    async with accepted(timeout=100) as (client, stream):
        for cut in range(0, len(V1), 7):
            await client.send_all(V1[cut:][:7])
            with trio.move_on_after(1) as scope:
                await stream.receive_header()
            assert scope.cancelled_caught == (cut + 7 < len(V1))
        await client.send_all(b"hello")
        assert await stream.receive_exactly(5) == b"hello"
        assert stream.remote_address == CLIENT


async def test_without_a_header_the_stream_is_closed(autojump_clock: MockClock) -> None:
    async with accepted(timeout=3) as (client, stream):
        with pytest.raises(RuntimeError, match="receive the PROXY header first"):
            stream.split()
        with pytest.raises(trio.BrokenResourceError, match="it did not come in time"):
            await stream.receive_some()
        assert trio.current_time() == 3
        assert await receive_all(client) == b""
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"hello")


async def test_cancelled_calls_buy_no_time(autojump_clock: MockClock) -> None:
    async with accepted(timeout=3) as (_, stream):
        for _ in range(2):
            with trio.move_on_after(1.4):
                await stream.receive_header()
        with pytest.raises(trio.BrokenResourceError, match="it did not come in time"):
            await stream.receive_header()
        assert trio.current_time() == 3


async def test_a_stream_of_its_own() -> None:
    left, right = unix_sockets()
    async with ProxyStream(left) as stream, SocketStream(right):
        await stream.receive_header()
        assert (stream.remote_address, stream.proxy_extra) == ("", {})


async def test_the_first_byte_is_the_one_after_the_header(autojump_clock: MockClock) -> None:
    handler = Handler()
    async with proxied(handler, first_byte_timeout=5) as door:
        async with door.knock() as silent, door.knock() as client:
            await silent.send_all(V1)
            await client.send_all(V1 + b"hello")
            assert await client.receive_exactly(5) == b"hello"
            assert await receive_all(silent) == b""
            assert trio.current_time() == 5
    assert len(handler.clients) == 1


async def test_a_shutdown_while_headers_are_awaited(autojump_clock: MockClock) -> None:
    handler, shutdown, door = Handler(), Shutdown(quiet=0.5), Door()
    listener = ProxyListener(Listening(door), trusted=["unix:"], timeout=60)
    async with serving(handler, listener, shutdown=shutdown) as server:
        async with door.knock() as slow, door.knock() as client:
            await slow.send_all(V1[:10])
            await client.send_all(V1)
            await ask(client)
            shutdown.start()
            assert await receive_all(slow) == b""
            assert await receive_all(client) == b""
            await server.ended.wait()
    assert server.ended_at == 0.5


# -- arguments


async def test_wrong_arguments() -> None:
    async with Listening(Door()) as listener:
        with pytest.raises(TypeError, match="TLS goes around it"):
            ProxyListener(
                trio.SSLListener(listener, ssl.create_default_context()),  # type: ignore[arg-type]
                trusted=["::1"],
            )
        with pytest.raises(TypeError, match=r"a list of networks, not '10\.0\.0\.0/8'"):
            ProxyListener(listener, trusted="10.0.0.0/8")
        with pytest.raises(ValueError, match="trusted must name"):
            ProxyListener(listener, trusted=[])
        with pytest.raises(ValueError, match="has host bits set"):
            ProxyListener(listener, trusted=["10.0.0.1/8"])
        with pytest.raises(ValueError, match="timeout must be"):
            ProxyListener(listener, trusted=["::1"], timeout=-1)
        with pytest.raises(ValueError, match="'refuse' or 'pass', not 'maybe'"):
            ProxyListener(listener, trusted=["::1"], untrusted="maybe")  # type: ignore[arg-type]


async def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "proxyprotocol", None)
    async with Listening(Door()) as listener:
        with pytest.raises(ImportError, match="pip install proxy-protocol"):
            ProxyListener(listener, trusted=["::1"])
