"""What is measured: a workload is a name, and the name says it all.

    50x1K                 50 connections, messages of 1 KiB, each echoed before the next is sent
    pipelined-16x1K       the same with 16 messages outstanding on each connection
    scopes-50x1K          the same with a timeout scope around each operation
    frames-50x1K          the same, of messages with a length prefix that the server takes apart
    connect-10x1K         a new connection for every message
    in-1x64K, out-1x64K   one way: the server receives, or sends, without end
    list256-16x64         a message of 64 bytes is answered by a list of 256 buffers of 64 bytes
    idle-10000            so many idle connections, and one that is not
    startup               importing the library, and a run that does nothing

Rules of this file: nothing runs here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KIB, MIB = 1024, 1024**2
UNITS = {"": 1, "K": KIB, "M": MIB}
PIECE = 64  # bytes of a buffer of a list, as in the servers
PREFIX_BYTES = 4
DEPTH = 16
CONNECTIONS_MAX = 20_000
PATTERN = re.compile(r"(?:(pipelined|scopes|frames|connect|in|out|list(\d+))-)?(\d+)x(\d+)([KM]?)")
IDLE = re.compile(r"idle-(\d+)")

DEFAULT = ("1x1K", "50x1K", "500x1K", "5000x1K", "16x64K", "1x1M")
QUICK = ("1x1K", "50x1K", "500x1K", "16x64K")
ECHOES = tuple(
    f"{connections}x{size}"
    for connections in (1, 10, 50, 500, 5000)
    for size in ("64", "1K", "16K", "64K", "1M")
    if connections < 500 or size in ("64", "1K")
)
OTHERS = (
    "16x64K", "pipelined-16x1K", "in-1x64K", "out-1x64K",
    "list2-16x64", "list16-16x64", "list256-16x64", "list1000-16x64",
    "connect-10x1K", "scopes-50x1K", "frames-50x1K", "frames-50x64", "idle-10000", "startup",
)  # fmt: skip
GROUPS = {"default": DEFAULT, "quick": QUICK, "echo": ECHOES, "all": (*ECHOES, *OTHERS)}


@dataclass(frozen=True)
class Server:
    """What a server is started as: the mode, and the number of buffers of its answers."""

    mode: str
    count: int = 1


@dataclass(frozen=True)
class Workload:
    """One kind of load.

    Attributes:
        kind: the word before the dash; "echo" if there is none.
        connections: that are open at the same time.
        message_bytes: of what the load sends.
        count: buffers of an answer, of the kind `list`.
    """

    name: str
    kind: str
    connections: int
    message_bytes: int = 0
    count: int = 1

    @property
    def server(self) -> Server:
        mode = self.kind if self.kind in ("scopes", "frames", "in", "out", "list") else "echo"
        return Server(mode, self.count)

    @property
    def one_core(self) -> bool:
        """Whether server and load share a core: with one connection the two take turns, and apart
        they would measure how long a core takes to wake up."""
        return self.connections == 1 and self.paced

    @property
    def paced(self) -> bool:
        """Whether it is also measured at a fixed rate."""
        return self.kind in ("echo", "scopes", "frames")

    @property
    def unit(self) -> str:
        return "MiB" if self.kind in ("in", "out") else "operation"

    def load_arguments(self) -> list[str]:
        """Of the load generator, without times, port and rate."""
        mode = {"connect": 1, "in": 2, "out": 3}.get(self.kind, 0)
        numbers = {
            "mode": mode, "connections": self.connections, "bytes": self.message_bytes,
            "depth": DEPTH if self.kind == "pipelined" else 1,
        }  # fmt: skip
        if self.kind == "frames":
            numbers |= {"bytes": PREFIX_BYTES + self.message_bytes, "framed": 1}
        if self.kind == "list":
            numbers["reply"] = PIECE * self.count
        return [word for name, number in numbers.items() for word in (name, str(number))]


def parse(name: str) -> Workload:
    """The workload of a name. Raises ValueError for a name that is none."""
    if name == "startup":
        return Workload(name, "startup", 0)
    if found := IDLE.fullmatch(name):
        workload = Workload(name, "idle", int(found[1]))
    elif found := PATTERN.fullmatch(name):
        kind, count, connections, size, unit = found.groups()
        kind = "list" if count else kind or "echo"
        workload = Workload(name, kind, int(connections), int(size) * UNITS[unit], int(count or 1))
    else:
        raise ValueError(f"{name!r} is no workload: 50x1K is one, pipelined-16x1K another")
    if not 1 <= workload.connections <= CONNECTIONS_MAX:
        raise ValueError(f"{name}: from 1 to {CONNECTIONS_MAX} connections")
    if workload.kind != "idle" and not 1 <= workload.message_bytes <= 64 * MIB:
        raise ValueError(f"{name}: messages from 1 byte to 64M")
    if workload.kind == "list" and not 1 <= workload.count <= 10_000:
        raise ValueError(f"{name}: lists from 1 to 10000 buffers")
    return workload


def expand(names: list[str]) -> list[Workload]:
    """The workloads of these names and groups, each once. Raises ValueError."""
    whole = [each for name in names for each in GROUPS.get(name, (name,))]
    return [parse(name) for name in dict.fromkeys(whole)]
