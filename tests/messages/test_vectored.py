"""send_all_vectored over every kind of stream: what it becomes there; errors, timeouts and buffers.

Rules: what reaches the operating system is counted at the calls (the ring's statistics, a socket's
send and sendmsg), and the other end says what came.
"""

from __future__ import annotations

import array
import contextlib
import errno
import math
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.networks import BLOCK, CountingSocket, blocks, digest_of, expect
from support.streams import (
    closing,
    count_of,
    drain,
    receive_all,
    tcp_sockets,
    unix_sockets,
    unix_streams,
)

import trio_uring
from trio_uring import SendStream, send_all_vectored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BUFFERS = [
    b"bytes",
    b"",
    bytearray(b"bytearray"),
    memoryview(b"_memoryview_")[1:-1],
    array.array("I", range(5)),
    b"end",
]
JOINED = b"".join(memoryview(item).tobytes() for item in BUFFERS)
MANY = [BLOCK[3 * i : 3 * i + 3] for i in range(5000)]

# Self-signed, for localhost, from 2020 to 2120; it protects nothing.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQglaZtjlMe8FsBuvcG
NhnOTan3xlTbS36vKKkNmVOXrDahRANCAATJLEMxfiQg+0uZ6vYfkLYF8fx64Bhi
zyQibW0uauFn+dpQu3FpphbXOl1jLCv3/lCV+2B62JKREkOyI81dobHw
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBcTCCARegAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMksQzF+JCD7S5nq
9h+QtgXx/HrgGGLPJCJtbS5q4Wf52lC7cWmmFtc6XWMsK/f+UJX7YHrYkpESQ7Ij
zV2hsfCjWDBWMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAPBgNVHRMBAf8EBTADAQH/
MB0GA1UdDgQWBBTr31r2qW3ps6OG+/KPxAsg43X8hjAOBgNVHQ8BAf8EBAMCAoQw
CgYIKoZIzj0EAwIDSAAwRQIgdJ1vbVrRHcisrhLKPkueqs5JfP1vFWCi/v+fDUf9
mEICIQC+h7egDeK8G8EDXaupkgbDp6/JNRC7n7ZKP833aKw2Vw==
-----END CERTIFICATE-----
"""


def trio_pair(buffer: int | None = None) -> tuple[trio.SocketStream, socket.socket]:
    """A trio stream, and the plain socket at its other end."""
    left, right = tcp_sockets(buffer)
    return trio.SocketStream(trio.socket.from_stdlib_socket(left)), right


# -- our streams


async def test_the_ring_makes_one_operation_of_a_list() -> None:
    left, right = unix_sockets()
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        await send_all_vectored(stream, BUFFERS)
        assert drain(right) == JOINED
        assert count_of("SENDMSG").submitted == 1
        assert count_of("SEND").submitted == 0
        assert stream.bytes_sent == len(JOINED)
        await send_all_vectored(stream, (item for item in BUFFERS))
        assert drain(right) == JOINED
        assert count_of("SENDMSG").submitted == 2


async def test_the_sending_half_of_the_ring() -> None:
    left, right = unix_sockets()
    stream = SendStream(left)
    async with closing(stream, right):
        await send_all_vectored(stream, BUFFERS)
        assert drain(right) == JOINED
        assert count_of("SENDMSG").submitted == 1


async def test_the_rings_own_timeout_is_the_default() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        left.send_timeout = 0.01
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(left, blocks(8 << 20))
        with trio.move_on_after(0.03) as scope:
            await send_all_vectored(left, blocks(8 << 20), timeout=math.inf)
        assert scope.cancelled_caught
        left.send_timeout = None
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(left, blocks(8 << 20), timeout=0.01)


# -- trio's socket stream


async def test_trios_stream_makes_one_sendmsg_of_a_list() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        counting = CountingSocket(stream.socket)
        with trio.testing.assert_checkpoints():
            await send_all_vectored(stream, BUFFERS)
        assert counting.calls == [("sendmsg", len(BUFFERS) - 1)]
        assert drain(right) == JOINED
        counting.calls.clear()
        await send_all_vectored(stream, iter([b"", b"alone"]))
        assert counting.calls == [("send", 1)]
        assert drain(right) == b"alone"


async def test_more_buffers_than_one_sendmsg_takes() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        counting = CountingSocket(stream.socket)
        await send_all_vectored(stream, MANY)
        assert drain(right) == b"".join(MANY)
        assert counting.calls == [("sendmsg", 1024)] * 4 + [("sendmsg", 5000 - 4 * 1024)]


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
async def test_short_writes_of_trios_socket(most: int) -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        counting = CountingSocket(stream.socket)
        counting.most = most
        await send_all_vectored(stream, BUFFERS)
        assert drain(right) == JOINED
        assert len(counting.calls) == -(-len(JOINED) // most)


async def test_short_writes_of_a_small_send_buffer() -> None:
    stream, right = trio_pair(65536)
    data = [BLOCK[i * 997 : i * 997 + i] for i in range(1000)] * 4
    reader = trio.SocketStream(trio.socket.from_stdlib_socket(right))
    async with closing(stream, reader), trio.open_nursery() as nursery:
        counting = CountingSocket(stream.socket)

        async def send() -> None:
            await send_all_vectored(stream, data)
            await stream.send_eof()

        nursery.start_soon(send)
        got = await receive_all(reader)
        assert digest_of([got]) == digest_of(data)
        assert len(counting.calls) > 5


async def test_timeouts_of_trios_stream() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(stream, blocks(64 << 20), timeout=0.01)
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(stream, blocks(64 << 20), timeout=0)
        for timeout in (None, math.inf):
            with trio.move_on_after(0.02) as scope:
                await send_all_vectored(stream, blocks(64 << 20), timeout=timeout)
            assert scope.cancelled_caught


async def test_a_cancelled_send_on_trios_stream_sent_a_prefix() -> None:
    stream, right = trio_pair()
    reader = trio.SocketStream(trio.socket.from_stdlib_socket(right))
    data = blocks(64 << 20)
    async with closing(stream, reader):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all_vectored, stream, data)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        await stream.aclose()
        got = await receive_all(reader)
        assert 0 < len(got) < 64 << 20
        assert digest_of([got]) == digest_of(data, len(got))


async def test_one_task_sends_on_trios_stream() -> None:
    """The other may use trio's send_all: both see each other."""
    stream, right = trio_pair()
    async with closing(stream, right):
        for first, second in (
            ((stream.send_all, bytes(64 << 20)), (send_all_vectored, stream, [b"x", b"y"])),
            ((send_all_vectored, stream, blocks(64 << 20)), (stream.send_all, b"x")),
            ((send_all_vectored, stream, blocks(64 << 20)), (send_all_vectored, stream, [])),
            ((send_all_vectored, stream, blocks(64 << 20)), (stream.send_eof,)),
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(*first)  # type: ignore[arg-type]
                await trio.testing.wait_all_tasks_blocked()
                await expect(trio.BusyResourceError, *second)  # type: ignore[arg-type]
                nursery.cancel_scope.cancel()


async def test_trios_stream_after_send_eof() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        await stream.send_eof()
        await expect(trio.ClosedResourceError, send_all_vectored, stream, [b"x", b"y"])
        await expect(trio.ClosedResourceError, send_all_vectored, stream, [])


async def test_a_closed_trio_stream() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        await stream.aclose()
        await expect(trio.ClosedResourceError, send_all_vectored, stream, [b"x", b"y"])
        await expect(trio.ClosedResourceError, send_all_vectored, stream, [b"x"])
        await expect(trio.ClosedResourceError, send_all_vectored, stream, [])


async def test_closing_wakes_a_send_on_trios_stream() -> None:
    stream, right = trio_pair()
    async with closing(stream, right), trio.open_nursery() as nursery:
        nursery.start_soon(
            expect, trio.ClosedResourceError, send_all_vectored, stream, blocks(64 << 20)
        )
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()


async def test_a_broken_trio_stream() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        right.close()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await send_all_vectored(stream, [b"x", b"y"])
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno in (errno.ECONNRESET, errno.EPIPE)


# -- buffers


@pytest.mark.parametrize("make", [unix_streams, trio_pair], ids=["ring", "trio"])
@pytest.mark.parametrize("end", ["sent", "cancelled", "timed out", "closed", "broken", "refused"])
async def test_buffers_can_be_resized_afterwards(make: Callable[[], Any], end: str) -> None:
    """Also while the exception, and so its traceback, is kept."""
    stream, other = make()
    size = 10 if end == "sent" else 16 << 20
    buffers = [bytearray(b"head"), bytearray(size), bytearray(b"tail")]
    kept: Any = None
    async with closing(stream, other):
        if end == "sent":
            await send_all_vectored(stream, buffers)
        elif end == "cancelled":
            with trio.move_on_after(0.01):
                await send_all_vectored(stream, buffers)
        else:
            with pytest.raises(BaseException) as kept:  # noqa: PT011
                await interrupted(stream, other, buffers, end)
        for buffer in buffers:
            buffer.append(0)
            buffer.clear()
    assert kept is None or not isinstance(kept.value, (AssertionError, BufferError))


async def interrupted(stream: Any, other: Any, buffers: list[Any], end: str) -> None:
    if end == "timed out":
        await send_all_vectored(stream, buffers, timeout=0.01)
    elif end == "refused":
        await send_all_vectored(stream, [*buffers, "text"])
    elif end == "broken":
        close = other.close if isinstance(other, socket.socket) else other._close
        close()
        while True:
            await send_all_vectored(stream, buffers)
    else:
        error: BaseException | None = None

        async def send() -> None:
            nonlocal error
            try:
                await send_all_vectored(stream, buffers)
            except trio.ClosedResourceError as exc:
                error = exc

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()
        assert error is not None
        raise error


NOT_LISTS: list[Any] = ["text", b"bytes", bytearray(b"bytearray"), memoryview(b"view"), 7, None]
NOT_BUFFERS: list[Any] = [
    ["text"],
    [b"sent?", "text"],
    [b"sent?", 7],
    [b"sent?", None],
    [b"sent?", [b"nested"]],
    (b"sent?", 1.5),
]


@pytest.mark.parametrize("bad", NOT_LISTS + NOT_BUFFERS, ids=lambda bad: type(bad).__name__)
async def test_type_errors_come_before_the_first_byte(bad: Any) -> None:
    for make in (unix_streams, trio_pair):
        stream, other = make()
        async with closing(stream, other):
            await expect(TypeError, send_all_vectored, stream, bad)
            if isinstance(bad, list):
                await expect(TypeError, send_all_vectored, stream, iter(bad))
            await send_all_vectored(stream, [b"after"])
            await stream.send_eof()
            assert (
                other.recv(99) if isinstance(other, socket.socket) else await receive_all(other)
            ) == b"after"
    for recording in (Recording(), Stapled(Recording())):
        await expect(TypeError, send_all_vectored, recording, bad)
        assert recording.got == []


async def test_a_buffer_that_is_not_contiguous_is_refused_whole() -> None:
    stream, other = trio_pair()
    recording = Recording()
    async with closing(stream, other):
        for target in (stream, recording):
            await expect(
                BufferError, send_all_vectored, target, [b"sent?", memoryview(b"0123456789")[::2]]
            )
        await stream.send_all(b"after")
        assert other.recv(99) == b"after"
        assert recording.got == []


# -- other streams


class Recording(trio.abc.SendStream):
    """A stream of somebody else's."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def send_all(self, data: Any) -> None:
        self.got.append(bytes(data))
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Vectored(Recording):
    """One that can send lists."""

    async def send_all_vectored(self, buffers: Any, *, timeout: float | None = None) -> None:
        self.got.append((buffers, timeout))
        await trio.lowlevel.checkpoint()


def Stapled(stream: Any) -> Any:
    stapled: Any = trio.StapledStream(stream, trio.testing.memory_stream_one_way_pair()[1])
    stapled.got = stream.got
    return stapled


async def test_other_streams_get_one_buffer_after_another() -> None:
    recording = Recording()
    with trio.testing.assert_checkpoints():
        await send_all_vectored(recording, BUFFERS)
    assert recording.got == [
        memoryview(item).tobytes() for item in BUFFERS if memoryview(item).nbytes
    ]
    assert b"".join(recording.got) == JOINED


async def test_an_empty_list_is_a_checkpoint_and_an_error_where_it_would_be() -> None:
    for make in (unix_streams, trio_pair):
        stream, other = make()
        async with closing(stream, other):
            for empty in ([], (), [b"", bytearray()], iter([])):
                with trio.testing.assert_checkpoints():
                    await send_all_vectored(stream, empty)
            with trio.CancelScope() as scope:
                scope.cancel()
                await send_all_vectored(stream, [])
            assert scope.cancelled_caught
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    with trio.testing.assert_checkpoints():
        await send_all_vectored(sender, [])
    await sender.aclose()
    await expect(trio.ClosedResourceError, send_all_vectored, sender, [])
    assert await receiver.receive_some() == b""


async def test_memory_streams() -> None:
    left, right = trio.testing.memory_stream_pair()
    await send_all_vectored(left, BUFFERS)
    await left.send_eof()
    assert await receive_all(right) == JOINED


async def test_the_timeout_is_for_all_buffers_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Slow(Recording):
        async def send_all(self, data: Any) -> None:
            await trio.sleep(1)
            self.got.append(data)

    slow = Slow()
    with pytest.raises(trio.TooSlowError):
        await send_all_vectored(slow, [b"x"] * 10, timeout=4.5)
    assert len(slow.got) == 4
    for timeout in (None, math.inf, 20):
        await send_all_vectored(Slow(), [b"x"] * 10, timeout=timeout)


async def test_a_stream_that_can_send_lists_is_asked_to() -> None:
    vectored = Vectored()
    await send_all_vectored(vectored, BUFFERS, timeout=3)
    await send_all_vectored(vectored, iter(BUFFERS))
    assert [(list(buffers), timeout) for buffers, timeout in vectored.got] == [
        (BUFFERS, 3),
        (BUFFERS, None),
    ]


async def test_stapled_streams_pass_it_on() -> None:
    vectored = Vectored()
    await send_all_vectored(Stapled(vectored), BUFFERS, timeout=5)
    await send_all_vectored(Stapled(Stapled(vectored)), BUFFERS)
    assert [timeout for _, timeout in vectored.got] == [5, None]
    recording = Recording()
    await send_all_vectored(Stapled(recording), [b"one", b"two"])
    assert recording.got == [b"one", b"two"]


async def test_stapled_trio_and_ring_streams_send_at_once() -> None:
    stream, right = trio_pair()
    async with closing(stream, right):
        counting = CountingSocket(stream.socket)
        await send_all_vectored(
            trio.StapledStream(trio.StapledStream(stream, stream), stream), BUFFERS
        )
        assert [name for name, _ in counting.calls] == ["sendmsg"]
        assert drain(right) == JOINED
    left, right = unix_sockets()
    ours = trio_uring.SocketStream(left)
    async with closing(ours, right):
        await send_all_vectored(trio.StapledStream(ours, ours), BUFFERS)
        assert count_of("SENDMSG").submitted == 1
        assert drain(right) == JOINED


async def test_a_wrapper_that_knows_nothing_of_lists_is_not_bypassed() -> None:
    """It passes attributes on, among them a send_all_vectored around its own send_all."""

    class Shouting(Recording):
        def __init__(self, wrapped: Any) -> None:
            self.wrapped = wrapped

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wrapped, name)

        async def send_all(self, data: Any) -> None:
            await self.wrapped.send_all(bytes(data).upper())

    vectored = Vectored()
    await send_all_vectored(Shouting(vectored), [b"one", b"two"])
    await send_all_vectored(Stapled(Shouting(vectored)), [b"three"])
    assert vectored.got == [b"ONE", b"TWO", b"THREE"]


async def test_a_subclass_of_ours_with_a_send_all_of_its_own_is_not_bypassed() -> None:
    class Shouting(trio_uring.SocketStream):
        async def send_all(self, data: Any, *, timeout: float | None = None) -> None:
            buffers = data if isinstance(data, (list, tuple)) else [data]
            await super().send_all([bytes(item).upper() for item in buffers], timeout=timeout)

    left, right = unix_sockets()
    stream = Shouting(left)
    async with closing(stream, right):
        await send_all_vectored(stream, [b"one", b"two"])
        assert drain(right) == b"ONETWO"


# -- TLS


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    file = tmp_path / "certificate.pem"
    file.write_text(CERTIFICATE)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return ssl.create_default_context(cafile=file), server


@contextlib.asynccontextmanager
async def encrypted(
    contexts: Any, left: trio.abc.Stream, right: trio.abc.Stream
) -> AsyncIterator[tuple[Any, Any]]:
    client: Any = trio.SSLStream(left, contexts[0], server_hostname="localhost")
    server: Any = trio.SSLStream(right, contexts[1], server_side=True)
    async with closing(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        yield client, server


@pytest.mark.parametrize("over", ["memory", "ring", "trio"])
async def test_tls(contexts: Any, over: str) -> None:
    if over == "memory":
        ends: Any = trio.testing.memory_stream_pair()
    elif over == "ring":
        ends = unix_streams()
    else:
        ends = [trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in unix_sockets()]
    async with encrypted(contexts, *ends) as (client, server):
        got = bytearray()
        data = [*BUFFERS, BLOCK[:300_000], b"", *MANY]
        whole = b"".join(memoryview(item).tobytes() for item in data)

        async def receive() -> None:
            while len(got) < len(whole):
                got.extend(await server.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await send_all_vectored(client, data)
            with trio.testing.assert_checkpoints():
                await send_all_vectored(client, [])
        assert got == whole
        await expect(TypeError, send_all_vectored, client, [b"sent?", "text"])
        await send_all_vectored(client, (item for item in [b"af", b"ter"]), timeout=math.inf)
        assert (await server.receive_some() + await server.receive_some()) == b"after"


async def test_tls_over_a_network_stream_times_out(contexts: Any) -> None:
    async with encrypted(contexts, *unix_streams()) as (client, _server):
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(client, blocks(32 << 20), timeout=0.05)
