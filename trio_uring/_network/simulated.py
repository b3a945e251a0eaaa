"""A network in memory for tests, seeded, so that runs can be repeated exactly.

That takes trio's MockClock and a seeded scheduler: see _network/deterministic.py.

Rules of this file: no socket, no thread, no wall clock, no task. A connection draws from its own
generators (`_Generators`), so that it does not depend on how others interleave.
"""

from __future__ import annotations

import errno
import itertools
import math
import operator
import os
import random
from dataclasses import dataclass

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.timed import within
from .deterministic import run_deterministically
from .hosts import ANY, HOME, WILDCARDS, HostNames, Hosts, SimulatedListener, key_of, resolve
from .link import LinkSettings, Path
from .network import (
    Address,
    BufferedNetworkStream,
    Network,
    NetworkConfig,
    NetworkListener,
    NetworkStream,
)
from .transport import connect


class SimulatedNetwork(Network):
    """A network in memory, for tests: it does what TCP does, with faults and timing of your choice.

    It needs no ring and works with any clock. Under trio.testing.MockClock its times are exact, and
    under `run_deterministically`, two runs with the same seed do the same things in the same order.

    Hosts are names of your choice ("server", "10.0.0.1") that need not be declared. The network
    itself is the host "127.0.0.1"; `host(name)` gives a view of it from another host. "localhost"
    and "::1" mean the host that uses them. A listener that the network itself binds to "",
    "0.0.0.0" or "::" is reached under every name; one that a view binds, under the view's name.

    As in TCP, a send to an end that was closed succeeds, and is answered with a reset. Closing with
    bytes that were not received sends a reset, too, and so does every close with `linger=0`. A
    reset discards what was not received. A close never waits, whatever `linger` says. A dial to a
    host that is cut off waits forever unless there is a connect_timeout.

    Args:
        seed: seeds everything random. A connection's behaviour comes from the seed and its number.
        config: the config of connections and listeners. A `backlog` of None means 128, and 0 means
            1.
        latency: seconds that a message takes one way, or a pair of them: a range from which it is
            drawn for each message. Bytes stay in order.
        bandwidth: bytes per second, for each direction of a connection; None: no limit.
        buffer_size: the most bytes in flight or not received, for each direction of a connection;
            beyond that a send waits.
        short: probability that an operation of a send takes only a part of its bytes (the send then
            goes on with the rest), or that a receive returns only a part of what is there. The size
            of the part is random.
        race: probability that a receive that already has its bytes can still be cancelled; it then
            puts them back.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        config: NetworkConfig | None = None,
        latency: float | tuple[float, float] = 0.0,
        bandwidth: float | None = None,
        buffer_size: int = 65536,
        short: float = 0.25,
        race: float = 0.25,
    ) -> None:
        low, high = latency if isinstance(latency, tuple) else (latency, latency)
        if not 0 <= low <= high < math.inf:
            raise ValueError("latency must be seconds >= 0, or a range of them")
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError("bandwidth must be > 0 bytes per second")
        if operator.index(buffer_size) < 1:
            raise ValueError("buffer_size must be at least 1 byte")
        if not (0 <= short <= 1 and 0 <= race <= 1):
            raise ValueError("short and race are probabilities")
        self.seed = seed
        self.config: NetworkConfig = NetworkConfig() if config is None else config
        self._settings = LinkSettings(
            (float(low), float(high)), bandwidth, buffer_size, short, race
        )
        self._hosts = Hosts()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<SimulatedNetwork seed={self.seed}>"

    def host(self, name: str, *, config: NetworkConfig | None = None) -> Network:
        """This network as seen from the host `name`.

        Its dials come from that host, and it binds only to addresses of that host.

        Args:
            name: any name except a wildcard.
            config: the config for what this view dials and binds; None: the network's.
        """
        if name in WILDCARDS:
            raise ValueError(f"{name!r} is not the name of a host")
        name = resolve(HOME, name)
        self._hosts.known.add(name)
        return _View(self, name, self.config if config is None else config)

    async def bind(self, address: Address) -> NetworkListener:
        """Listens on an address. See Network.bind.

        Args:
            address: an address of any host. Port 0 means the host's next free port, from 49152 on.

        Raises:
            OSError: the address is in use (EADDRINUSE).

        Cancellation: nothing is bound.
        """
        return await self._bind(None, self.config, address)

    async def dial(self, address: Address) -> NetworkStream:
        """Connects to an address from the host 127.0.0.1. See Network.dial.

        It takes one round trip, and waits while the hosts are cut off from each other or the
        listener's backlog is full.

        Raises:
            ConnectionRefusedError: nothing listens there, or `refuse` was called.
            trio.TooSlowError: `config.connect_timeout` was up.

        Cancellation: nothing is left open, and nothing is accepted.
        """
        return await self._dial(HOME, self.config, address)

    # -- faults

    def partition(self, a: HostNames, b: HostNames, *, one_way: bool = False) -> None:
        """Cuts hosts off from each other, until `heal`.

        What has arrived can be received. What is in flight or is sent meanwhile waits, and so do
        ends, resets, and dials, which have to get there and back.

        Args:
            a, b: a host or several; each of `a` is cut off from each of `b`. A wildcard ("0.0.0.0",
                which may be a listener's address, "::" or "") means every host except the other
                one, including those not known yet.
            one_way: stop only what `a` sends to `b`. Acknowledgements are not simulated: what `b`
                sends arrives, and makes room for more once it is received.

        Raises:
            ValueError: a name has not been used in `host`, `bind` or `dial`, or there is no name at
                all, so that this fault would hit nothing. To partition before anything else, name
                the hosts with `host`.
        """
        self._hosts.cut(a, b, one_way)

    def heal(self, a: HostNames, b: HostNames, *, one_way: bool = False) -> None:
        """Ends a partition.

        What was stopped is sent again, and arrives one latency (and its time on the wire) from now.

        Args, Raises: as in partition. With `one_way`, what `b` sends to `a` stays stopped if it is.
        """
        self._hosts.heal(a, b, one_way)

    def reset(self, a: HostNames, b: HostNames) -> None:
        """Breaks all connections between the hosts now, for both ends.

        What was not received is lost, and blocked tasks wake. To reset one connection, call
        `stream.transport.reset()`.

        Args, Raises: as in partition.
        """
        self._hosts.reset(a, b)

    def refuse(self, address: Address) -> None:
        """Refuses dials to `address` from now on, whoever listens there.

        A wildcard host means the port on every host.

        Raises:
            ValueError: for the host, as in partition.
        """
        host, port = key_of(HOME, address)
        self._hosts.named(host)
        self._hosts.refused.add((host, port))
        for listener in self._hosts.listeners.values():
            listener.room.unpark_all()

    def accept_again(self, address: Address) -> None:
        """Ends a `refuse` of the same address."""
        self._hosts.refused.discard(key_of(HOME, address))

    # -- for the views

    @enable_ki_protection
    async def _bind(
        self, name: str | None, config: NetworkConfig, address: Address
    ) -> SimulatedListener:
        """Binds for the host `name`; None: for the host that the address names."""
        await trio.lowlevel.checkpoint()
        hosts, (host, port) = self._hosts, key_of(name or HOME, address)
        if name is not None and host not in (name, ANY):
            raise _error(errno.EADDRNOTAVAIL, "listen on", address)
        owner = host if name is None else name
        port = port or hosts.free_port(owner)
        if not port or hosts.is_used(owner, port):
            raise _error(errno.EADDRINUSE, "listen on", address)
        hosts.used.add((owner, port))
        hosts.known.add(owner)
        listener = SimulatedListener(
            hosts, (owner, port), config, ("0.0.0.0" if host == ANY else host, port)
        )
        hosts.listeners[owner, port] = listener
        return listener

    @enable_ki_protection
    async def _dial(self, name: str, config: NetworkConfig, address: Address) -> NetworkStream:
        target = key_of(name, address, to_dial=True)
        self._hosts.known.add(target[0])
        path = self._hosts.path(name, target[0])
        generator = _Generators(self.seed, next(self._numbers))
        with within(config.connect_timeout, "{}:{}".format(*address), "dial"):
            listener = await self._reach(path, generator("dial"), target)
        local = (name, self._hosts.free_port(name))
        if not local[1]:
            raise _error(errno.EADDRNOTAVAIL, "connect to", address)
        self._hosts.used.add(local)
        transport, accepted = connect(
            path,
            (name, target[0]),
            self._settings,
            generator,
            (config.socket_options.linger != 0, listener.config.socket_options.linger != 0),
            lambda: self._hosts.used.discard(local),
        )
        listener.give(accepted, target, local)
        return BufferedNetworkStream(transport, config, local, target)

    async def _reach(
        self, path: Path, generator: random.Random, target: Address
    ) -> SimulatedListener:
        """Waits until a listener takes the connection.

        There is room when it returns, so the caller must use it before it waits again.
        """
        while True:
            await path.cross(
                self._settings.draw_latency(generator) + self._settings.draw_latency(generator)
            )
            while not path.is_cut:
                listener = self._hosts.listening(target)
                if listener is None:
                    raise _error(errno.ECONNREFUSED, "connect to", target)
                if listener.has_room:
                    return listener
                await listener.room.park()


class _View(Network):
    """A SimulatedNetwork, seen from one host."""

    def __init__(self, network: SimulatedNetwork, name: str, config: NetworkConfig) -> None:
        self.config = config
        self._network, self._name = network, name

    def __repr__(self) -> str:
        return f"<host {self._name!r} of {self._network!r}>"

    async def bind(self, address: Address) -> NetworkListener:
        return await self._network._bind(self._name, self.config, address)

    async def dial(self, address: Address) -> NetworkStream:
        return await self._network._dial(self._name, self.config, address)


@dataclass(frozen=True)
class _Generators:
    """The generators of one connection, named after what they decide."""

    seed: int
    number: int

    def __call__(self, name: str) -> random.Random:
        # A string, because it seeds by its digest, which is the same on every machine.
        return random.Random(f"{self.seed} {self.number} {name}")


def _error(code: int, what: str, address: Address) -> OSError:
    return OSError(code, f"cannot {what} {address[0]}:{address[1]}: {os.strerror(code)}")


__all__ = ["SimulatedListener", "SimulatedNetwork", "run_deterministically"]
