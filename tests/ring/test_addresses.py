"""Socket addresses: what the kernel makes of them is what the socket module says.

Rules of this file: the kernel is asked, through the socket module; nothing is taken from a table.
"""

from __future__ import annotations

import ctypes
import os
import socket

import pytest

from trio_uring._addresses import pack_address, unpack_address

LIBC = ctypes.CDLL(None, use_errno=True)


def bind(sock: socket.socket, name: bytes) -> None:
    assert LIBC.bind(sock.fileno(), name, len(name)) == 0, os.strerror(ctypes.get_errno())


def name_of(sock: socket.socket) -> bytes:
    room, length = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
    assert LIBC.getsockname(sock.fileno(), room, ctypes.byref(length)) == 0
    return room.raw[: length.value]


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET, ("0.0.0.0", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_INET6, ("::", 0, 0, 0)),
        (socket.AF_UNIX, "name"),
        (socket.AF_UNIX, "näme"),
        (socket.AF_UNIX, b"\0abstract-" + os.urandom(4).hex().encode()),
        (socket.AF_UNIX, "\0abstract-" + os.urandom(4).hex()),
    ],
)
def test_the_kernel_takes_it_and_gives_it_back(family, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(family) as sock:
        bind(sock, pack_address(family, address))
        assert unpack_address(name_of(sock)) == sock.getsockname()


def test_ports_flows_and_scopes():
    assert unpack_address(pack_address(socket.AF_INET, ("1.2.3.4", 65535))) == ("1.2.3.4", 65535)
    whole = ("fe80::1", 1234, 0xABCDE, 7)
    assert unpack_address(pack_address(socket.AF_INET6, whole)) == whole
    scope = socket.if_nametoindex("lo")
    assert unpack_address(pack_address(socket.AF_INET6, ("fe80::1%lo", 1))) == ("fe80::1", 1, 0, scope)


def test_no_address_is_none_and_an_unnamed_socket_is_empty():
    assert unpack_address(b"") is None
    a, b = socket.socketpair()
    with a, b:
        assert unpack_address(name_of(a)) == a.getsockname() == ""


@pytest.mark.parametrize(
    ("family", "address", "error"),
    [
        (socket.AF_INET, ("1.2.3.4", 65536), OverflowError),
        (socket.AF_INET, ("1.2.3.4", -1), OverflowError),
        (socket.AF_INET, ("name", 1), OSError),
        (socket.AF_INET6, ("::1", 1, 1 << 20), OverflowError),
        (socket.AF_UNIX, "x" * 108, OSError),
        (socket.AF_NETLINK, (0, 0), OSError),
    ],
)
def test_what_is_no_address_is_refused(family, address, error):
    with pytest.raises(error):
        pack_address(family, address)
