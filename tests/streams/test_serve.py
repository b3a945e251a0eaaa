"""serve_tcp: handlers, nurseries, and what happens when a handler fails or resources run out.

Rules: trio.serve_listeners does the work, by trio's rules; these tests show that they hold with our
listeners.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support import emfile
from support.streams import closing, passes, receive_all

import trio_uring
from trio_uring import SocketListener, SocketStream, open_tcp_stream, serve_tcp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def start(
    nursery: trio.Nursery, handler: Callable[[SocketStream], Awaitable[object]], **options: Any
) -> SocketListener:
    listeners: list[SocketListener] = await nursery.start(
        partial(serve_tcp, handler, 0, host="127.0.0.1", **options)
    )
    assert [type(one) for one in listeners] == [SocketListener]
    return listeners[0]


async def dial(listener: SocketListener) -> SocketStream:
    return await open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])


async def echo(stream: SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def test_many_clients_at_once() -> None:
    async def client(listener: SocketListener, number: int) -> None:
        async with await dial(listener) as stream:
            message = number.to_bytes(4, "big") * 50
            for _ in range(5):
                await stream.send_all([message[:7], message[7:]])
                assert await stream.receive_exactly(len(message)) == message
            await stream.send_eof()
            assert await stream.receive_some() == b""

    async with trio.open_nursery() as nursery:
        listener = await start(nursery, echo)
        async with trio.open_nursery() as clients:
            for number in range(300):
                clients.start_soon(client, listener, number)
        nursery.cancel_scope.cancel()
    assert listener.socket.fileno() == -1


async def test_the_stream_is_closed_when_the_handler_returns() -> None:
    async def handler(stream: SocketStream) -> None:
        await stream.send_all(b"bye")

    async with trio.open_nursery() as nursery:
        listener = await start(nursery, handler)
        async with await dial(listener) as stream:
            assert await receive_all(stream) == b"bye"
        nursery.cancel_scope.cancel()


async def test_handlers_in_another_nursery_survive_the_server() -> None:
    async with trio.open_nursery() as handlers:
        async with trio.open_nursery() as nursery:
            listener = await start(nursery, echo, handler_nursery=handlers)
            stream = await dial(listener)
            await stream.send_all(b"one")
            assert await stream.receive_exactly(3) == b"one"
            nursery.cancel_scope.cancel()
        async with closing(stream):
            await stream.send_all(b"two")
            assert await stream.receive_exactly(3) == b"two"
            assert listener.socket.fileno() == -1


async def test_an_exception_of_a_handler_ends_the_server() -> None:
    async def handler(stream: SocketStream) -> None:
        raise RuntimeError("handler")

    listeners = []
    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="handler"), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            listeners.append(await start(nursery, handler))
            async with await dial(listeners[0]) as stream:
                await receive_all(stream)
                await trio.sleep_forever()
    assert listeners[0].socket.fileno() == -1


async def test_cancelling_a_server_in_the_middle_of_everything() -> None:
    """Accepting, echoing and blocked all at once. `checked_run` looks for what is left."""
    async with trio.open_nursery() as nursery:
        listener = await start(nursery, echo)
        streams = [await dial(listener) for _ in range(50)]
        for stream in streams[:25]:
            nursery.start_soon(stream.send_all, bytes(1 << 24))
        for stream in streams[25:]:
            await stream.send_all(b"x")
        await passes(10)
        assert trio_uring.current_statistics().in_flight >= 25
        nursery.cancel_scope.cancel()
    async with closing(*streams):
        pass


def test_out_of_descriptors() -> None:
    child = emfile.__file__
    done = subprocess.run(
        [sys.executable, "-W", "error", child],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "recovered\n"), done.stderr
