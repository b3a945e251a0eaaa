"""The hosts of a simulated network: listeners, ports, the paths between hosts, and their faults.

Rules of this file: those of _network/simulated.py. Names of hosts are resolved only here. A fault
that would hit nothing is an error.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import (
    ParkingLot,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
)

from .link import Path
from .network import (
    Address,
    BufferedNetworkStream,
    NetworkConfig,
    NetworkListener,
    NetworkStream,
    check_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .transport import SimulatedTransport

# Connections that may wait to be accepted if the config does not say: old kernels' default.
BACKLOG = 128
EPHEMERAL = range(49152, 65536)  # ports to choose from, as IANA defines them
HOME = "127.0.0.1"  # the host of a program that does not name one
ANY = ""  # in tables: every host
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
LOOPBACKS = frozenset({"localhost", "127.0.0.1", "::1"})

HostNames = str | Collection[str]
Pair = tuple[str, str]
"""Two hosts: the one that sends, and the one that it sends to."""


class Hosts:
    """Who listens where, which ports are taken, and the paths between hosts.

    The host ANY stands for all of them.
    """

    def __init__(self) -> None:
        self.listeners: dict[Address, SimulatedListener] = {}
        self.used: set[Address] = set()  # by listeners and by dialling ends
        self.refused: set[Address] = set()
        self.known = {HOME, ANY}  # hosts that somebody named, bound to or dialled
        self._paths: dict[frozenset[str], Path] = {}
        # Partitions from or to ANY, for the paths still to be made.
        self._rules: set[Pair] = set()
        self._next_ports: dict[str, int] = {}

    def path(self, a: str, b: str) -> Path:
        path = self._paths.get(frozenset({a, b}))
        if path is None:
            path = self._paths[frozenset({a, b})] = Path()
            for sender, receiver in ((a, b), (b, a)):
                if a != b and any(_covers(rule, sender, receiver) for rule in self._rules):
                    path.cut([sender])
        return path

    # -- faults

    def cut(self, a: HostNames, b: HostNames, one_way: bool) -> None:
        pairs = self._pairs(a, b, one_way)
        self._rules.update(pair for pair in pairs if ANY in pair)
        for path, senders in self._affected(pairs).items():
            path.cut(senders)

    def heal(self, a: HostNames, b: HostNames, one_way: bool) -> None:
        pairs = self._pairs(a, b, one_way)
        self._rules = {
            rule for rule in self._rules if not any(_covers(pair, *rule) for pair in pairs)
        }
        for path, senders in self._affected(pairs).items():
            path.heal(senders)

    def reset(self, a: HostNames, b: HostNames) -> None:
        for path in self._affected(self._pairs(a, b, True)):
            path.reset()

    def named(self, names: HostNames) -> list[str]:
        """The hosts that these names mean; ANY is every host.

        Raises:
            ValueError: a host is not known, or no host was named.
        """
        listed = [names] if isinstance(names, str) else names
        found = [ANY if name in WILDCARDS else resolve(HOME, name) for name in listed]
        unknown = [name for name in found if name not in self.known]
        if unknown or not found:
            known = ", ".join(sorted(self.known - {ANY}))
            what = f"this network knows no host {unknown[0]!r}" if unknown else "no host was named"
            raise ValueError(
                f"{what}: nothing would be hit. It knows {known}, and what `host` names"
            )
        return found

    def _pairs(self, a: HostNames, b: HostNames, one_way: bool) -> list[Pair]:
        senders, receivers = self.named(a), self.named(b)
        pairs = [(one, other) for one in senders for other in receivers]
        return pairs if one_way else pairs + [(other, one) for one, other in pairs]

    def _affected(self, pairs: Iterable[Pair]) -> dict[Path, list[str]]:
        """The paths between such hosts, each with the hosts that send."""
        found: dict[Path, list[str]] = {}
        for pair in pairs:
            if ANY not in pair:
                found.setdefault(self.path(*pair), []).append(pair[0])
                continue
            for hosts, path in self._paths.items():
                for sender, receiver in itertools.permutations(sorted(hosts), 2):  # none to itself
                    if _covers(pair, sender, receiver):
                        found.setdefault(path, []).append(sender)
        return found

    # -- ports

    def listening(self, target: Address) -> SimulatedListener | None:
        anywhere = (ANY, target[1])
        if target in self.refused or anywhere in self.refused:
            return None
        return self.listeners.get(target) or self.listeners.get(anywhere)

    def is_used(self, host: str, port: int) -> bool:
        if host == ANY:
            return any(port == used for _, used in self.used)
        return (host, port) in self.used or (ANY, port) in self.used

    def free_port(self, host: str) -> int:
        """The next free port of the host; 0: there is none."""
        first = self._next_ports.get(host, EPHEMERAL.start)
        for port in itertools.chain(range(first, EPHEMERAL.stop), range(EPHEMERAL.start, first)):
            if not self.is_used(host, port):
                self._next_ports[host] = port + 1
                return port
        return 0


class SimulatedListener(NetworkListener):
    """A listener of a SimulatedNetwork, made by its `bind`.

    Attributes:
        config: the config of the connections that it accepts.
        room: the lot where dials wait while the backlog is full.
    """

    def __init__(
        self, hosts: Hosts, key: Address, config: NetworkConfig, local_address: Address
    ) -> None:
        self.config = config
        self.room = ParkingLot()
        self._hosts, self._key, self._local_address = hosts, key, local_address
        backlog = config.socket_options.backlog
        self._backlog = BACKLOG if backlog is None else max(1, backlog)
        self._queue: deque[tuple[SimulatedTransport, Address, Address]] = deque()
        self._arrived = ParkingLot()
        self._accepting = self._closed = False

    @property
    def local_address(self) -> Address:
        return self._local_address

    @property
    def has_room(self) -> bool:
        return len(self._queue) < self._backlog

    def give(self, transport: SimulatedTransport, local: Address, remote: Address) -> None:
        """Puts a new connection into the backlog."""
        self._queue.append((transport, local, remote))
        self._arrived.unpark_all()

    @enable_ki_protection
    async def accept(self) -> NetworkStream:
        """Waits for a connection. See NetworkListener.accept.

        Dials that found the backlog full then go on.

        Raises:
            trio.BusyResourceError: another task is accepting on this listener.
            trio.ClosedResourceError: this listener was closed.

        Cancellation: no connection is lost.
        """
        if self._accepting:
            raise trio.BusyResourceError("another task is currently accepting on this listener")
        self._check_open()
        self._accepting = True
        try:
            await checkpoint_if_cancelled()
            if self._queue:
                await cancel_shielded_checkpoint()
            while not self._queue:
                self._check_open()
                await self._arrived.park()
            self._check_open()
        finally:
            self._accepting = False
        transport, local, remote = self._queue.popleft()
        self.room.unpark_all()
        return BufferedNetworkStream(transport, self.config, local, remote)

    @enable_ki_protection
    async def aclose(self) -> None:
        """Closes the listener.

        Connections that were not accepted are reset, and dials that wait are refused.

        Cancellation: the listener is closed even if the scope is already cancelled.
        """
        if not self._closed:
            self._closed = True
            self._hosts.used.discard(self._key)
            del self._hosts.listeners[self._key]
            for transport, _, _ in self._queue:
                transport.close(abort=True)
            self._queue.clear()
            self._arrived.unpark_all()
            self.room.unpark_all()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this listener was closed")


def _covers(pair: Pair, sender: str, receiver: str) -> bool:
    return pair[0] in (sender, ANY) and pair[1] in (receiver, ANY)


def resolve(speaker: str, name: str) -> str:
    """The host that `name` means to the host `speaker`."""
    return speaker if name in LOOPBACKS else name


def key_of(speaker: str, address: Address, *, to_dial: bool = False) -> Address:
    """An address as a key for the tables. Dialling a wildcard means dialling oneself."""
    host, port = check_address(address)
    if host in WILDCARDS:
        return (speaker if to_dial else ANY), port
    return resolve(speaker, host), port
