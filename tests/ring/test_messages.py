"""Messages: addresses and control data, over every ring that has a kernel under it.

Rules of this file: the Ring protocol only, and sockets of the kernel's.
"""

from __future__ import annotations

import array
import os
import socket
import struct

import pytest

from trio_uring._op import LARGE_GROUP, Message, Opcode, Operation


@pytest.fixture
def world(kernel_world):
    return kernel_world


def udp(world) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    world.sockets.append(sock)
    return sock


def ipv4(sock: socket.socket) -> bytes:
    host, port = sock.getsockname()
    return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(host))


def sendmsg(sock: socket.socket, buffers, message: Message) -> Operation:
    op = Operation(Opcode.SENDMSG, sock.fileno(), sock)
    op.buffers, op.length, op.message = buffers, sum(map(len, buffers)), message
    return op


def recvmsg(sock: socket.socket, buffers, message: Message) -> Operation:
    op = Operation(Opcode.RECVMSG, sock.fileno(), sock)
    op.buffers, op.length, op.message = buffers, sum(map(len, buffers)), message
    return op


def do(world, *ops: Operation) -> None:
    for op in ops:
        assert world.ring.submit(op)
    world.settle(*ops)


@pytest.mark.parametrize("receive_first", [False, True])
def test_a_datagram_has_its_senders_address(world, receive_first):
    a, b = udp(world), udp(world)
    first, second = bytearray(2), bytearray(3)
    sending = sendmsg(a, [b"da", b"ta"], Message(ipv4(b)))
    receiving = recvmsg(b, [first, second], Message(control_max=64))
    do(world, *((receiving, sending) if receive_first else (sending, receiving)))
    world.ring.received(receiving)
    assert (sending.res, receiving.res, bytes(first + second)) == (4, 4, b"data\0")
    assert receiving.message.name == ipv4(a)
    assert (receiving.message.control, receiving.message.flags) == (b"", 0)


def test_what_does_not_fit_is_cut_and_told(world):
    a, b = udp(world), udp(world)
    into = bytearray(2)
    sending, receiving = sendmsg(a, [b"data"], Message(ipv4(b))), recvmsg(b, [into], Message())
    do(world, sending, receiving)
    world.ring.received(receiving)
    assert (receiving.res, bytes(into)) == (2, b"da")
    assert receiving.message.flags & socket.MSG_TRUNC


def test_a_datagram_into_a_provided_buffer(kernel_world_with_buffers):
    world = kernel_world_with_buffers
    a, b = udp(world), udp(world)
    receiving = recvmsg(b, [], Message())
    receiving.group, receiving.length = LARGE_GROUP, 65536
    do(world, receiving, sendmsg(a, [b"x" * 60000], Message(ipv4(b))))
    world.ring.received(receiving)
    assert receiving.chunk == b"x" * 60000
    assert receiving.message.name == ipv4(a)
    assert world.ring.buffers_in_use() == 0


def test_descriptors_travel(world):
    a, b = socket.socketpair(socket.AF_UNIX)
    world.sockets += [a, b]
    reading, writing = os.pipe()
    control = struct.pack("=Qii", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS) + array.array("i", [writing]).tobytes()
    into = bytearray(1)
    receiving = recvmsg(b, [into], Message(control_max=socket.CMSG_SPACE(4)))
    receiving.flags = socket.MSG_CMSG_CLOEXEC
    do(world, receiving, sendmsg(a, [b"x"], Message(control=control)))
    world.ring.received(receiving)
    length, level, kind, fd = struct.unpack_from("=Qiii", receiving.message.control)
    assert (length, level, kind) == (20, socket.SOL_SOCKET, socket.SCM_RIGHTS)
    assert not os.get_inheritable(fd)
    os.write(fd, b"through")
    assert os.read(reading, 7) == b"through"
    for number in (reading, writing, fd):
        os.close(number)


def test_an_accepted_connection_has_its_peers_address(world):
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    client = socket.create_connection(server.getsockname())
    world.sockets += [server, client]
    op = Operation(Opcode.ACCEPT, server.fileno(), server)
    op.flags, op.message = socket.SOCK_CLOEXEC, Message()
    do(world, op)
    world.ring.received(op)
    os.close(op.res)
    assert op.message.name == ipv4(client)


def test_a_message_is_used_again(world):
    a, b = udp(world), udp(world)
    into = bytearray(4)
    receiving = recvmsg(b, [into], Message())
    for sender in (a, b, a):
        receiving.buffers, receiving.length = [into], 4
        do(world, receiving, sendmsg(sender, [b"ping"], Message(ipv4(b))))
        world.ring.received(receiving)
        assert receiving.message.name == ipv4(sender)


def test_an_address_that_is_too_long_is_refused_and_nothing_is_sent(world):
    a = udp(world)
    op = sendmsg(a, [b"x"], Message(bytes(129)))
    with pytest.raises(ValueError, match="129 bytes"):
        world.ring.submit(op)
    assert op.token not in world.ring.table
    op.pin = None
