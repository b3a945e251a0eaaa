"""Who is compared: a table of peers, and which of them are here.

Rules of this file: a peer is a row; nothing else in this package knows a peer by name but the
targets, the plots and the document. What is not installed is skipped with a word, never an error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .._driver.backend import VARIABLE, open_uring
from .._errors import RingUnavailableError
from .kinds import PROGRAMS, SENDING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .workloads import Server

SERVERS = Path(__file__).parent / "servers"
ECHO_MODES = frozenset({"echo", "frames", "in", "out", "list", "tls"})
TRIO_ONLY = frozenset({"scopes", "relay", "send-file", "udp", "udp-many", "cancel"})
TRIO_MODES = ECHO_MODES | TRIO_ONLY | {*PROGRAMS, *SENDING}
UDP_LOOPS = ("asyncio", "uvloop")  # which have create_datagram_endpoint


@dataclass(frozen=True)
class Peer:
    """One kind of server.

    Attributes:
        name: as it is asked for, and as the tables have it.
        what: a phrase for the report.
        module: what has to be importable; empty for the floor in C.
        script: the server's program, in `servers/`; empty for the floor in C.
        arguments: of the program, before the mode.
        environment: what its process gets besides ours.
        modes: what it can serve.
    """

    name: str
    what: str
    module: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    modes: frozenset[str] = TRIO_MODES

    def command(self, server: Server, floor: Path) -> list[str]:
        """The command line of its server; `floor` is the server in C."""
        if not self.script:
            return [str(floor)]
        path = str(SERVERS / self.script)
        numbers = (str(server.count), str(server.size))
        return [sys.executable, path, *self.arguments, server.mode, *numbers]

    def missing(self) -> str:
        """Why it cannot be run; empty if it can."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        return _why_no_ring() if self.environment.get(VARIABLE) == "uring" else ""


def _why_no_ring() -> str:
    """Why this machine has no io_uring for a server; empty if it has."""
    try:
        ring, _ = open_uring()
    except RingUnavailableError as error:
        return str(error.strerror)
    ring.close()
    return ""


def _ours(name: str, what: str, **environment: str) -> Peer:
    # Nothing that the caller's environment says may turn one of them into another.
    whole = {VARIABLE: "uring", "TRIO_URING_DRIVER": "auto", **environment}
    return Peer(name, what, "trio_uring", "trio_server.py", ("trio_uring",), whole)


def _asyncio(module: str, kind: str) -> Peer:
    name = module if kind == "streams" else f"{module}-{kind}"
    what, words, modes = f"{module}, {kind}", (module, kind), ECHO_MODES
    if kind == "protocol" and module in UDP_LOOPS:
        modes |= {"udp"}
    if module == "rloop":
        modes -= {"tls"}  # NotImplementedError
    return Peer(name, what, module, "asyncio_server.py", words, {}, modes)


LOOPS = ("asyncio", "uvloop", "rloop", "zuvloop", "aiofastnet")
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        _ours("ring", "trio_uring on io_uring", TRIO_URING_ACCELERATOR="1"),
        _ours("readiness", "trio_uring by readiness", TRIO_URING_BACKEND="readiness"),
        _ours("python", "trio_uring on io_uring, driver in Python", TRIO_URING_ACCELERATOR="0"),
        Peer("trio", "trio's own streams", "trio", "trio_server.py", ("trio",)),
        *(_asyncio(module, kind) for module in LOOPS for kind in ("streams", "protocol")),
        Peer("c", "C on epoll: the floor", "", "", modes=frozenset({"echo"})),
    )
}


def choose(names: Iterable[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers of these names that are here, and why the others are not."""
    wanted = [PEERS[name] for name in dict.fromkeys(names)]
    skipped = {peer.name: why for peer in wanted if (why := peer.missing())}
    return [peer for peer in wanted if peer.name not in skipped], skipped


def versions() -> dict[str, str]:
    """The version of every package of a peer that is installed."""
    found = {}
    for name in ("trio_uring", "trio", *LOOPS[1:]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
