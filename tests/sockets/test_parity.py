"""What sockets do: the same with trio's and with ours.

Rules: those of support/sockets.py. No test checks which library it runs over.
"""

from __future__ import annotations

import array
import os
import socket
from types import ModuleType

import pytest
import trio
from support.sockets import MESSAGES, Sockets, of_kind, of_messages, of_streams, on_both
from support.streams import pattern
from trio.testing import assert_checkpoints


@on_both
@of_kind
@pytest.mark.parametrize(
    "call", ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"]
)
@pytest.mark.parametrize("late", [False, True])
async def test_every_receive(library: ModuleType, kind: str, call: str, late: bool) -> None:
    buffer = bytearray(10)
    arguments = {"recv": [10], "recvfrom": [10], "recvmsg": [10, 100]}
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        got = []

        async def receive() -> None:
            if call == "recvmsg_into":
                with memoryview(buffer) as view, view[:2] as first, view[2:] as second:
                    got.append(await right.recvmsg_into([first, second]))
            else:
                got.append(await getattr(right, call)(*arguments.get(call, [buffer])))

        async with trio.open_nursery() as nursery:
            if late:
                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
            assert await left.send(b"data") == 4
            if not late:
                nursery.start_soon(receive)
        (result,) = got
        assert (result[0] if isinstance(result, tuple) else result) == (
            4 if call.endswith("into") else b"data"
        )
        address = (
            None
            if kind in ("tcp", "tcp6", "unix", "unix-dgram", "seqpacket")
            else left.getsockname()
        )
        if call in ("recvfrom", "recvfrom_into"):
            assert result[1] == address
        if call in ("recvmsg", "recvmsg_into"):
            assert result[1] == []
            assert result[2] & ~socket.MSG_EOR == 0
            assert result[3] == address
        if call.endswith("into"):
            assert bytes(buffer[:4]) == b"data"
        buffer.append(0)  # not exported any more


@on_both
@of_kind
async def test_every_send(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        assert await left.send(memoryview(b"one")) == 3
        assert await right.recv(100) == b"one"
        assert await left.send(array.array("i", [1, 2])) == 8
        assert await right.recv(100) == array.array("i", [1, 2]).tobytes()
        assert await left.sendmsg([b"t", bytearray(b"w"), memoryview(b"o")]) == 3
        assert await right.recv(100) == b"two"
        assert await left.sendmsg(iter([b"x"]), [], 0) == 1
        assert await right.recv(100) == b"x"


@pytest.mark.cpython_only("a sendmsg of nothing sends no datagram")
@on_both
@of_kind
async def test_nothing_at_all(library: ModuleType, kind: str) -> None:
    """Empty buffers, as far as the socket has a meaning for them; and a receive of nothing takes
    nothing."""
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        assert await left.send(b"") == 0
        if kind in MESSAGES:
            assert await right.recv(10) == b""
        assert await left.send(b"data") == 4
        with assert_checkpoints():
            assert await right.recv(0) == b""
        with assert_checkpoints():
            assert await right.recv_into(bytearray()) == 0
        assert await right.recv(10) == b"data"
        assert await left.sendmsg([]) == 0
        assert await left.send(b"last") == 4
        if kind in MESSAGES:
            assert await right.recv(10) == b""
        assert await right.recv(10) == b"last"


@on_both
@of_streams
async def test_a_stream_of_many_sizes(library: ModuleType, kind: str) -> None:
    """What comes is what went, whatever buffers are used: sends of 1 byte to 1 MiB, receives of all
    kinds."""
    data = pattern(3 * 2**20)
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)

        async def send() -> None:
            view, size = memoryview(data), 1
            while view.nbytes:
                view = view[await left.send(view[:size]) :]
                size = size * 3 % (2**20)
            left.shutdown(socket.SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got, sizes = bytearray(), 0
            while True:
                size = (1, 4096, 4097, 65536, 2**20)[sizes % 5]
                sizes += 1
                chunk = await right.recv(size)
                assert len(chunk) <= size
                if not chunk:
                    break
                got += chunk
        assert got == data
        assert left.did_shutdown_SHUT_WR


@on_both
@of_messages
@pytest.mark.parametrize("size", [1, 4096, 4097, 60000])
async def test_messages_are_whole_or_cut(library: ModuleType, kind: str, size: int) -> None:
    data = pattern(size)
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        for receive in (65536, size, 2**20):
            await left.send(data)
            assert await right.recv(receive) == data
        for receive in (size // 2, 1):
            await left.send(data)
            assert await right.recv(receive) == data[:receive]
            await left.send(data)
            got, _, flags, _ = await right.recvmsg(receive)
            assert got == data[:receive]
            assert bool(flags & socket.MSG_TRUNC) is (receive < size)


@pytest.mark.cpython_only("PyPy reports other flags")
@on_both
@of_kind
async def test_flags(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        await left.send(b"data", socket.MSG_DONTWAIT)
        for _ in range(2):
            assert await right.recv(2, socket.MSG_PEEK) == b"da"
            assert (await right.recvfrom(9, socket.MSG_PEEK))[0] == b"data"
        assert await right.recv(9, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"data"
        if kind in MESSAGES:
            await left.send(b"data")
            assert len(await right.recv(1, socket.MSG_PEEK | socket.MSG_TRUNC)) == 4
            buffer = bytearray(2)
            assert await right.recv_into(buffer, 0, socket.MSG_TRUNC) == 4
            assert buffer == b"da"


@on_both
async def test_urgent_data(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair("tcp")
        await left.send(b"ab!", socket.MSG_OOB)
        assert await right.recv(10, socket.MSG_OOB) == b"!"
        assert await right.recv(10) == b"ab"


@on_both
async def test_the_error_queue(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        sock = await sockets.bound("udp")
        gone = await sockets.bound("udp")
        address = gone.getsockname()
        gone.close()
        sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        await sock.sendto(b"data", address)
        data, control, flags, name = await sock.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
        assert (data, name) == (b"data", address)
        assert flags & socket.MSG_ERRQUEUE
        assert [item[:2] for item in control] == [(socket.IPPROTO_IP, 11)]


@on_both
@pytest.mark.parametrize("kind", ["udp", "udp6", "unix-dgram"])
async def test_addresses_of_messages(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = await sockets.bound(kind), await sockets.bound(kind)
        there = right.getsockname()
        assert await left.sendto(b"1", there) == 1
        assert await right.recvfrom(10) == (b"1", left.getsockname())
        assert await left.sendto(b"2", 0, there) == 1
        assert await right.recvfrom_into(bytearray(5)) == (1, left.getsockname())
        assert await left.sendmsg([b"3"], [], 0, there) == 1
        assert await right.recvmsg(5) == (b"3", [], 0, left.getsockname())
        unnamed = sockets.new(kind)
        await unnamed.sendto(b"4", there)
        data, name = await right.recvfrom(10)
        assert data == b"4"
        if kind == "unix-dgram":
            assert name is None
        else:
            assert name[1] == unnamed.getsockname()[1]


@on_both
async def test_names_are_resolved(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.new("udp"), await sockets.bound("udp")
        await left.sendto(b"x", ("localhost", right.getsockname()[1]))
        await left.connect(("localhost", str(right.getsockname()[1])))
        await left.send(b"y")
        assert [await right.recv(5), await right.recv(5)] == [b"x", b"y"]


@on_both
async def test_abstract_and_relative_names(
    library: ModuleType, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (b"\0trio_uring %d" % os.getpid(), "a \u00e9", tmp_path / "path"):
        with Sockets(library) as sockets:
            server, client = sockets.new("unix"), sockets.new("unix")
            await server.bind(name)
            server.listen()
            await client.connect(name)
            accepted, peer = await server.accept()
            sockets.take(accepted)
            assert peer == ""
            assert client.getpeername() == (
                os.fspath(name) if isinstance(name, os.PathLike) else name
            )


@on_both
@of_streams
@pytest.mark.parametrize("late", [False, True])
async def test_accept_and_connect(library: ModuleType, kind: str, late: bool) -> None:
    with Sockets(library) as sockets:
        server, client = await sockets.bound(kind), sockets.new(kind)
        server.listen()
        got = []

        async def accept() -> None:
            got.append(await server.accept())

        async with trio.open_nursery() as nursery:
            if late:
                nursery.start_soon(accept)
                await trio.testing.wait_all_tasks_blocked()
            await client.connect(server.getsockname())
            if not late:
                nursery.start_soon(accept)
        ((accepted, address),) = got
        sockets.take(accepted)
        assert type(accepted) is type(server)
        assert address == client.getsockname()
        assert (accepted.family, accepted.type, accepted.proto) == (
            server.family,
            server.type,
            server.proto,
        )
        assert not accepted.get_inheritable()
        await client.send(b"x")
        assert await accepted.recv(1) == b"x"
        await client.wait_writable()
        assert not accepted.is_readable()
        await client.send(b"x")
        assert accepted.is_readable()


@pytest.mark.cpython_only("PyPy has no MSG_CMSG_CLOEXEC")
@on_both
async def test_descriptors_are_passed(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair("unix")
        read, write = os.pipe()
        try:
            fds = array.array("i", [read, write])
            await left.sendmsg([b"fds"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            data, control, flags, _ = await right.recvmsg(10, socket.CMSG_SPACE(8))
            assert (data, flags & ~socket.MSG_CMSG_CLOEXEC) == (b"fds", 0)
            ((level, what, packed),) = control
            assert (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            got = array.array("i", packed)
            assert len(got) == 2
            for fd in got:
                os.close(fd)
            # No room for two: the kernel keeps one back, and says so.
            await left.sendmsg([b"fds"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            data, control, flags, _ = await right.recvmsg_into([bytearray(10)], socket.CMSG_LEN(4))
            assert flags & socket.MSG_CTRUNC
            for fd in array.array("i", control[0][2][:4]):
                os.close(fd)
        finally:
            os.close(read)
            os.close(write)


@on_both
@of_kind
async def test_dup_and_detach(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        other = sockets.take(left.dup())
        assert type(other) is type(left)
        assert other.fileno() != left.fileno()
        fd = left.detach()
        assert left.fileno() == -1
        left = sockets.take(library.socket(fileno=fd))
        await left.send(b"1")
        await other.send(b"2")
        assert await right.recv(1) + await right.recv(1) == b"12"


@on_both
@pytest.mark.parametrize("family", ["AF_NETLINK", "AF_VSOCK", "AF_PACKET", "AF_ALG"])
async def test_other_families(library: ModuleType, family: str) -> None:
    if not hasattr(socket, family):
        pytest.skip("no such family here")
    kind = {
        "AF_NETLINK": socket.SOCK_RAW,
        "AF_PACKET": socket.SOCK_DGRAM,
        "AF_ALG": socket.SOCK_SEQPACKET,
    }
    try:
        plain = socket.socket(getattr(socket, family), kind.get(family, socket.SOCK_STREAM))
    except OSError as exc:
        pytest.skip(str(exc))
    with Sockets(library) as sockets:
        sock = sockets.take(plain)
        if family == "AF_NETLINK":
            await sock.bind((0, 0))
            # RTM_GETLINK, a dump.
            get_links = bytes.fromhex("1400000012000103 01000000 00000000 00000000")
            assert await sock.sendto(get_links, (0, 0)) == 20
            data, address = await sock.recvfrom(65536)
            assert address == (0, 0)
            assert int.from_bytes(data[:4], "little") >= 20
            await sock.send(get_links)
            assert await sock.recv(65536)
            assert len(await sock.recvmsg(65536)) == 4
