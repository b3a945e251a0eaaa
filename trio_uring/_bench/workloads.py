"""What is measured: a workload is a name, and the name says it all: see `NAMES`.

Rules of this file: nothing runs here.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

from .kinds import KINDS, SENDING

KIB, MIB = 1024, 1024**2
UNITS = {"": 1, "K": KIB, "M": MIB}
PIECE = 64  # bytes of a buffer of a list
PREFIX_BYTES = 4
WEBSOCKET_BYTES_MAX = 65_535  # more would need the longest head
DATAGRAM_BYTES_MAX = 65_507
# What a socket's receive buffer has room for by default, and what a datagram takes of it besides.
DATAGRAMS_BYTES_MAX, DATAGRAM_OVERHEAD = 200_000, 1300
FRAMES_MAX, FRAMES_BYTES = 256, 4 * MIB  # that are sent for a request
CONNECTIONS_MAX = 20_000
PREFIXES = [name for name in KINDS if name not in ("echo", "list") and not KINDS[name].apart]
PATTERN = re.compile(rf"(?:(?:({'|'.join(PREFIXES)})|list(\d+))-)?(\d+)x(\d+)([KM]?)")
COUNTED = re.compile(r"(idle|cancel)-(\d+)")

NAMES = """\
    50x1K                 50 connections, messages of 1 KiB, each echoed before the next is sent
    pipelined-16x1K       the same with 16 messages outstanding on each connection
    scopes-50x1K          the same with a timeout scope around each operation
    frames-50x1K          the same, of messages with a length prefix that the server takes apart
    connect-10x1K         a new connection for every message
    in-1x64K, out-1x64K   one way: the server receives, or sends, without end
    list256-16x64         a message of 64 bytes is answered by a list of 256 buffers of 64 bytes
    send-frame-16x64      16 streams on which the server sends frames of 64 bytes
    send-joined-, send-twice-, send-many-16x64
                          the same by other ways: prefix and payload joined, in two sends, and all
                          frames in one call
    relay-50x1K           50 pairs of connections: what goes into one comes out at the other
    relay-bulk-1x256K     the same with 16 messages outstanding on each pair
    send-file-1x16M       a file of 16 MiB, which is in the page cache, is sent for each request
    udp-50x64             50 clients, each datagram of 64 bytes is sent back before the next is sent
    udp-many-50x64        the same with as many datagrams as there are in a call
    tls-50x1K             the echo over TLS
    hypercorn-64x5        a whole program: hypercorn, GET requests on connections that are kept, and
                          answers with a body of 5 bytes
    websockets-64x100     another: an echo server of the websockets library
    idle-10000            so many idle connections, and one that is not
    cancel-10000          so many blocked receives that are cancelled together
    startup               importing the library, and a run that does nothing
"""

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
    "connect-10x1K", "scopes-50x1K", "frames-50x1K", "frames-50x64", "idle-10000", "cancel-10000",
    "startup",
)  # fmt: skip
FRAMES = tuple(f"send-frame-{streams}x{size}" for streams in (1, 16) for size in ("64", "4K"))
MOVES = ("relay-50x1K", "relay-bulk-1x256K", "send-file-1x16M")
TLS = ("tls-1x1K", "tls-50x1K", "tls-16x64K")
PROGRAMS = ("hypercorn-64x5", "websockets-64x100")
DATAGRAMS = tuple(f"{kind}-50x{size}" for kind in ("udp", "udp-many") for size in (64, 1400))
JUDGED = (  # what there are targets for
    *DEFAULT, "scopes-50x1K", *FRAMES, *MOVES, *DATAGRAMS[:2], *PROGRAMS, "idle-10000",
)  # fmt: skip
GROUPS = {
    "default": DEFAULT, "quick": QUICK, "echo": ECHOES, "frames": FRAMES, "moves": MOVES,
    "judged": JUDGED, "udp": DATAGRAMS, "tls": TLS, "programs": PROGRAMS,
    "all": (*ECHOES, *OTHERS, *FRAMES, *MOVES, *DATAGRAMS, *TLS, *PROGRAMS),
}  # fmt: skip


@dataclass(frozen=True)
class Server:
    """What a server is started as.

    Attributes:
        mode: what it does for a connection.
        count: buffers or messages of an answer.
        size: bytes of each of them.
    """

    mode: str
    count: int = 1
    size: int = 0


@dataclass(frozen=True)
class Workload:
    """One kind of load.

    Attributes:
        kind: the word before the dash; "echo" if there is none.
        connections: that are open at the same time.
        message_bytes: of a message.
        buffers: of an answer, of the kind `list`.
    """

    name: str
    kind: str
    connections: int
    message_bytes: int = 0
    buffers: int = 1

    @property
    def server(self) -> Server:
        mode = KINDS[self.kind].mode
        if self.kind == "list":
            return Server(mode, self.buffers, PIECE)
        if self.kind == "cancel":
            return Server(mode, self.connections)
        if self.kind in ("send-file", "hypercorn"):
            return Server(mode, 1, self.message_bytes)
        return Server(mode, self.batch, self.message_bytes) if self.batch > 1 else Server(mode)

    @property
    def batch(self) -> int:
        """Units for each answer that the load counts."""
        if not KINDS[self.kind].batched:
            return 1
        return max(2, min(FRAMES_MAX, FRAMES_BYTES // self.message_bytes))

    @property
    def one_core(self) -> bool:
        """Whether server and load share a core: with one connection the two take turns, and apart
        they would measure how long a core takes to wake up."""
        return self.connections == 1 and (self.paced or self.kind == "tls")

    @property
    def paced(self) -> bool:
        """Whether it is also measured at a fixed rate."""
        return KINDS[self.kind].paced

    @property
    def apart(self) -> bool:
        """Whether it is measured by other means than rounds under load."""
        return KINDS[self.kind].apart

    def missing(self) -> str:
        """Why it cannot be measured here; empty if it can."""
        for name in KINDS[self.kind].needs:
            try:
                found = importlib.util.find_spec(name)
            except ModuleNotFoundError:  # not even the package that it is in
                found = None
            if found is None:
                return f"{name} is not installed"
        return ""

    @property
    def tls(self) -> bool:
        return KINDS[self.kind].tls

    @property
    def unit(self) -> str:
        return KINDS[self.kind].unit

    @property
    def reply_bytes(self) -> int:
        """Of an answer; 0 where it is the echo of the message."""
        if self.kind in SENDING:
            return self.batch * (PREFIX_BYTES + self.message_bytes)
        if self.kind == "send-file":
            return self.message_bytes
        return PIECE * self.buffers if self.kind == "list" else 0

    def load_arguments(self) -> list[str]:
        """Of the load generator, without times, port and rate."""
        numbers = {
            "mode": 0, "connections": self.connections, "bytes": self.message_bytes, "depth": 1,
            **KINDS[self.kind].load,
        }  # fmt: skip
        if self.kind == "frames":
            numbers["bytes"] += PREFIX_BYTES
        if self.reply_bytes:
            numbers["reply"] = self.reply_bytes
        if self.batch > 1 or self.kind == "send-file":
            numbers["bytes"] = 1  # of a request
        return [word for name, number in numbers.items() for word in (name, str(number))]


def parse(name: str) -> Workload:
    """The workload of a name. Raises ValueError for a name that is none."""
    if name == "startup":
        return Workload(name, "startup", 0)
    if found := COUNTED.fullmatch(name):
        workload = Workload(name, found[1], int(found[2]))
    elif found := PATTERN.fullmatch(name):
        kind, buffers, connections, size, unit = found.groups()
        kind = "list" if buffers else kind or "echo"
        length = int(size) * UNITS[unit]
        workload = Workload(name, kind, int(connections), length, int(buffers or 1))
    else:
        raise ValueError(f"{name!r} is no workload: 50x1K is one, pipelined-16x1K another")
    if not 1 <= workload.connections <= CONNECTIONS_MAX:
        raise ValueError(f"{name}: from 1 to {CONNECTIONS_MAX} connections")
    if not workload.apart and not 1 <= workload.message_bytes <= 64 * MIB:
        raise ValueError(f"{name}: messages from 1 byte to 64M")
    if workload.kind == "list" and not 1 <= workload.buffers <= 10_000:
        raise ValueError(f"{name}: lists from 1 to 10000 buffers")
    if workload.kind.startswith("udp"):
        size = workload.connections * (workload.message_bytes + DATAGRAM_OVERHEAD)
        if workload.message_bytes > DATAGRAM_BYTES_MAX or size > DATAGRAMS_BYTES_MAX:
            raise ValueError(f"{name}: more than a socket's buffer has room for")
    if workload.kind == "websockets" and workload.message_bytes > WEBSOCKET_BYTES_MAX:
        raise ValueError(f"{name}: messages of at most {WEBSOCKET_BYTES_MAX} bytes")
    if workload.reply_bytes > 64 * MIB:
        raise ValueError(f"{name}: answers of at most 64M")
    return workload


def expand(names: list[str]) -> list[Workload]:
    """The workloads of these names and groups, each once. Raises ValueError."""
    whole = [each for name in names for each in GROUPS.get(name, (name,))]
    return [parse(name) for name in dict.fromkeys(whole)]
