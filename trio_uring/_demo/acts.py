"""The acts of the demonstration: what each one does, and with how much.

Rules of this file: an act is a row. Its server is in servers.py and its load in loads.py, both
under the act's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Act:
    """One act.

    Attributes:
        name: of its server and its load.
        title: what happens.
        difference: between the server on trio_uring and the one on trio.
        unit: of an operation.
        checked: what the load has found, with places for `operations` and its counts.
        sizes: the load's arguments.
    """

    name: str
    title: str
    difference: str
    unit: str
    checked: str
    sizes: Mapping[str, int]


ACTS = (
    Act(
        "echo",
        "An echo server with 200 connections, 1 KiB a message",
        "the same program, with trio_uring.run for trio.run",
        "message",
        "{operations:,} messages came back as they had been sent",
        {"connections": 200, "size": 1024},
    ),
    Act(
        "files",
        "A file server whose clients are cancelled, and resume",
        "the same server; it sends header and file as a list, trio's has to join them",
        "file",
        "{operations:,} files with the right checksum, {cancelled:,} of them cut and resumed",
        {"clients": 30, "least": 2**22},
    ),
    Act(
        "relay",
        "A proxy between 4 clients and what is behind it, in bulk",
        "trio_uring.relay, in place of two loops of receive_some and send_all",
        "MiB",
        "{operations:,.0f} MiB with the right checksum, {answers:,} answers after the end",
        {"connections": 4, "chunk": 262_144},
    ),
    Act(
        "udp",
        "A UDP server under bursts of 128 datagrams, 100 bytes each",
        "receive_many and send_many, in place of recvfrom and sendto",
        "datagram",
        "{operations:,} datagrams came back as they had been sent, {lost:,} were lost",
        {"sockets": 4, "burst": 32, "size": 100, "patience": 1},
    ),
)
