"""This package on another platform, as far as a Linux can show it: python -c "... main(...)".

trio and the standard library are imported first, as they are here. Then this package, and whatever
is imported later, finds modules that lack what the platform lacks, and the platform's name.

Rules of this file: importing it imports neither trio nor trio_uring. What is done here must work on
every platform; no ring and no C is ever used.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import re
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

EXTENSIONS = ("trio_uring._uring", "trio_uring._hot")
# The modules of programs that are for Linux only.
LINUX_ONLY = re.compile(r"trio_uring\.(_bench|_c)\b")


class _Lacks:
    """An attribute that objects of a class do not have."""

    def __get__(self, *_: object) -> Any:
        raise AttributeError

    __set__ = __get__


def pretend(platform: str, missing: dict[str, list[str]], whole: list[str]) -> None:
    """Makes this process one of another platform for everything that is imported from now on.

    Args:
        platform: the value of sys.platform.
        missing: names that modules lack, by module.
        whole: modules that are missing altogether.
    """
    import socket

    for name, lacking in missing.items():
        real = importlib.import_module(name)
        less = types.ModuleType(name, real.__doc__)
        vars(less).update({key: vars(real)[key] for key in vars(real).keys() - set(lacking)})
        sys.modules[name] = less
    hidden: Any = dict.fromkeys([*whole, *EXTENSIONS])
    if platform != "linux":
        hidden["trio._core._io_epoll"] = None
    sys.modules.update(hidden)
    if platform == "win32":
        trios: Any = importlib.import_module("trio._socket")
        for name in ("sendmsg", "recvmsg", "recvmsg_into"):
            delattr(trios._SocketType, name)
            delattr(trios.SocketType, name)
            setattr(socket.socket, name, _Lacks())
    sys.platform = platform


def main(platform: str, missing: str, whole: str) -> None:
    for name in ("trio.testing", "pytest", "prometheus_client", "asyncio", "hashlib", "logging"):
        importlib.import_module(name)
    if platform == "pypy":
        sys.implementation.name, platform = "pypy", "linux"
    pretend(platform, json.loads(missing), json.loads(whole))
    import_everything()
    commands()
    use_everything(platform)


def import_everything() -> None:
    import trio_uring

    assert not trio_uring.backend_info().setup_flags
    for name in trio_uring.__all__:
        assert getattr(trio_uring, name) is not None
    for module in pkgutil.walk_packages(trio_uring.__path__, "trio_uring."):
        if not LINUX_ONLY.match(module.name) and module.name not in EXTENSIONS:
            importlib.import_module(module.name)


def commands() -> None:
    """The command line answers, and what is for Linux only is not imported for it."""
    from trio_uring import __main__

    imported = set(sys.modules)
    assert __main__.main(["info"]) == 0
    assert not [name for name in sys.modules.keys() - imported if LINUX_ONLY.match(name)]
    for arguments in (["info", "--pid", "0"], ["run", "nothing-of-that-name"]):
        assert __main__.main(arguments)
    demo()
    if not hasattr(importlib.import_module("os"), "sched_getaffinity"):
        benchmark()


def benchmark() -> None:
    """It measures by what only Linux has, and says so."""
    from trio_uring import __main__

    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        assert __main__.main(["bench", "--quick"]) == 2
    [line] = told.getvalue().splitlines()
    assert line.startswith("python -m trio_uring bench: it measures by what only Linux"), line
    with contextlib.redirect_stdout(told):
        assert __main__.main(["bench", "--list"]) == 0


def demo() -> None:
    """An act, whose processes have nothing of this platform but its parent."""
    from trio_uring import __main__
    from trio_uring._demo.acts import Act
    from trio_uring._demo.command import perform_all

    act = Act("echo", "title", "difference", "unit", "checked", {"connections": 2, "size": 100})
    assert perform_all([act], 1, 0.0) == 0
    assert sys.platform == "linux" or __main__.main(["demo", "files"]) == 1


def use_everything(platform: str) -> None:
    import trio

    import trio_uring

    for program in (echo, serve, network, cancel, lists, datagrams, files, copies, buffers, fake):
        trio.run(program)
        if program is not fake:
            trio_uring.run(program)
    if platform == "win32":
        for program in (unix, to_unix, standard_output, pipe):
            trio.run(refused, program)
    else:
        for program in (unix, standard_output, pipe, process):
            trio.run(program)
            trio_uring.run(program)


async def pair() -> tuple[Any, Any]:
    """The two ends of a TCP connection."""
    import trio_uring

    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        client = await trio_uring.open_tcp_stream("127.0.0.1", port)
        return client, await listener.accept()


async def echo() -> None:
    import trio_uring

    client, server = await pair()
    async with client, server:
        await client.send_all(b"hello")
        await server.send_all(await server.receive_exactly(5))
        assert await client.receive_exactly(5) == b"hello"
        memory = bytearray(8)
        await client.send_all(memoryview(b"abc"))
        assert await server.receive_into(memory) == 3
        assert memory[:3] == b"abc"
        sending, receiving = client.split()
        await sending.aclose()
        assert await server.receive_some() == b""
        await receiving.aclose()
    used = trio_uring.current_statistics()
    assert used.backend == "readiness"
    assert used.bytes_sent == used.bytes_received == 13
    assert trio_uring.current_operations() == []
    assert trio_uring.backend_info().reason


async def serve() -> None:
    import trio

    import trio_uring

    async def handler(stream: trio.abc.Stream) -> None:
        async for data in stream:  # type: ignore[attr-defined]
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            lambda **status: trio_uring.serve_tcp(handler, 0, host="127.0.0.1", **status)
        )
        port = listener.socket.getsockname()[1]
        for opens in (trio_uring.open_tcp_stream, trio.open_tcp_stream):
            async with await opens("127.0.0.1", port) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
        with trio_uring.socket.socket() as sock:
            await sock.connect(("127.0.0.1", port))
            assert await sock.send(b"y") == 1
            assert await sock.recv(1) == b"y"
        nursery.cancel_scope.cancel()


async def network() -> None:
    import trio

    import trio_uring

    for made in (trio_uring.UringNetwork(), trio_uring.TrioNetwork()):
        metered = trio_uring.Metered(trio_uring.Audited(made))
        listener = await metered.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery, listener:
            nursery.start_soon(one_message, listener)
            async with await metered.dial(listener.local_address) as stream:
                await stream.send_all([b"first", b"second"])
                assert await stream.receive_exactly(11) == b"firstsecond"


async def one_message(listener: Any) -> None:
    async with await listener.accept() as stream:
        await stream.send_all(await stream.receive_exactly(11))


async def cancel() -> None:
    import pytest
    import trio

    client, server = await pair()
    async with client, server:
        with trio.move_on_after(0.01) as scope:
            await client.receive_some()
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError):
            await client.receive_exactly(2, timeout=0.01)
        await server.send_all(b"a")
        with pytest.raises(trio.TooSlowError):
            await client.receive_exactly(2, timeout=0.01)
        await server.send_all(b"b")
        assert await client.receive_exactly(2) == b"ab"
        with trio.move_on_after(0.05):
            await client.send_all(bytes(2**26))
        assert 0 < client.bytes_sent < 2**26
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_meanwhile, server)
            await trio.testing.wait_all_tasks_blocked()
            await server.aclose()


async def closed_meanwhile(stream: Any) -> None:
    import pytest
    import trio

    await stream.receive_exactly(1)
    with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
        await stream.receive_exactly(2**26)


async def lists() -> None:
    """Lists of buffers: small, large, empty ones, of other items, more than one call takes."""
    import trio

    client, server = await pair()
    whole = [b"", b"head", bytearray(b"body" * 50000), memoryview(b"x"), b"tail" * 30000, b"."]
    many = [b"%d," % number for number in range(5000)]
    async with client, server:
        for buffers in (whole, many, [b"only"], tuple(whole)):
            expected = b"".join(buffers)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, buffers)
                assert await server.receive_exactly(len(expected)) == expected
            assert client.bytes_sent == len(expected)


async def datagrams() -> None:
    import pytest
    import trio

    import trio_uring

    async with (
        await trio_uring.open_udp_socket(local_address=("127.0.0.1", 0)) as a,
        await trio_uring.open_udp_socket(local_address=("127.0.0.1", 0)) as b,
    ):
        to = b.getsockname()
        await a.send_to(b"one", to)
        await a.send_to([b"t", bytearray(b"wo")], to)
        assert await a.send_many([(bytes([number]), to) for number in range(20)]) == 20
        came = [await b.receive_from() for _ in range(2)]
        while len(came) < 22:
            came += await b.receive_many()
        assert came[:2] == [(b"one", a.getsockname()), (b"two", a.getsockname())]
        assert [data for data, _ in came[2:]] == [bytes([number]) for number in range(20)]
        with pytest.raises(trio.TooSlowError):
            await b.receive_from(timeout=0.01)
        if sys.platform == "win32":
            with pytest.raises(OSError, match="no local addresses"):
                await b.receive_from(local=True)
            with pytest.raises(OSError, match="no local addresses"):
                await a.send_to(b"x", to, local=trio_uring.Local("127.0.0.1"))


async def files() -> None:
    import trio

    import trio_uring

    client, server = await pair()
    content = bytes(range(256)) * 4096
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        async with client, server:
            for start, count in ((0, len(content)), (256, 512)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio_uring.send_file, client, file, start, count)
                    expected = content[start : start + count]
                    assert await server.receive_exactly(count) == expected


async def copies() -> None:
    import trio

    import trio_uring

    (a, b), (c, d) = await pair(), await pair()
    async with a, b, c, d, trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.relay, b, c)
        await a.send_all(b"there")
        assert await d.receive_exactly(5) == b"there"
        await d.send_all(b"back")
        assert await a.receive_exactly(4) == b"back"
        await trio_uring.send_frame(a, b"frame")
        assert await trio_uring.receive_frame(d) == b"frame"
        await a.send_eof()
        await d.send_eof()


async def buffers() -> None:
    import gc

    import trio_uring

    pool = trio_uring.BufferPool()
    client, server = await pair()
    async with client, server:
        with pool.alloc(4096) as view:
            view[:4] = b"pool"
            await client.send_all(view[:4])
            assert await server.receive_exactly(4) == b"pool"
    del view
    gc.collect()
    assert pool.statistics()[0].in_use == 0
    options = trio_uring.SocketOptions(keepalive=trio_uring.KeepAlive(), receive_buffer=65536)
    [listener] = await trio_uring.open_tcp_listeners(0, host="127.0.0.1", options=options)
    await listener.aclose()


async def fake() -> None:
    """A ring without a kernel, which a task waits for."""
    import socket

    import trio_uring
    from trio_uring.testing import FakeRing, use_ring

    ring = FakeRing(1)
    use_ring(ring)
    left, right = socket.socketpair()
    ring.connect(left.fileno(), right.fileno())
    async with trio_uring.SocketStream(left) as a, trio_uring.SocketStream(right) as b:
        await a.send_all([b"fa", b"ke"])
        assert await b.receive_exactly(4) == b"fake"


# -- not on Windows


async def unix() -> None:
    import os

    import pytest

    import trio_uring

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        [listener] = await trio_uring.open_unix_listeners(path, mode=0o666)
        assert os.stat(path).st_mode & 0o777 == 0o666
        async with listener:
            client = await trio_uring.open_unix_socket(path)
            server = await listener.accept()
            async with client, server:
                await client.send_all(b"unix")
                assert await server.receive_exactly(4) == b"unix"
        with pytest.raises(FileNotFoundError):
            os.stat(path)


async def to_unix() -> None:
    import trio_uring

    await trio_uring.open_unix_socket("/nonexistent/socket")


async def standard_output() -> None:
    import trio_uring

    async with trio_uring.open_stdout() as stream:
        await stream.send_all(b"standard output\n")


async def pipe() -> None:
    import os

    import trio_uring

    read, write = os.pipe()
    async with trio_uring.ReceiveStream(read) as receiving, trio_uring.SendStream(write) as sending:
        await sending.send_all([b"pi", b"pe"])
        assert await receiving.receive_exactly(4) == b"pipe"


async def process() -> None:
    import subprocess

    import trio_uring

    child = await trio_uring.open_process(
        [sys.executable, "-c", "print(input())"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    async with child.stdin, child.stdout:
        await child.stdin.send_all(b"hello\n")
        assert await child.stdout.receive_exactly(6) == b"hello\n"
        await child.wait()


async def refused(program: Callable[[], Any]) -> None:
    """Says in one sentence that the platform has no such thing."""
    import pytest

    with pytest.raises((RuntimeError, TypeError), match=r"this platform|on Windows"):
        await program()
