"""A network in memory for tests: seeded, and with trio's MockClock and a seeded scheduler the same
in every run.

Rules of this file: no socket, no thread, no wall clock, no task of its own. A connection draws from
generators of its own (`_Generators`), so that it does not depend on how others interleave.
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
    """A network in memory, for tests: what TCP does, with the faults and the timing that you
    choose.

    It needs no ring and works with any clock. Under trio.testing.MockClock its times are exact, and
    under `run_deterministically` two runs with the same seed do the same in the same order.

    Hosts are names of your choice ("server", "10.0.0.1"), and need not be declared. The network
    itself is the host "127.0.0.1"; `host(name)` gives a view of it from another. "localhost" and
    "::1" mean the host that says them. A listener that the network itself binds to "", "0.0.0.0" or
    "::" is reached under every name; one of a view, under the view's.

    As of TCP: a send to an end that was closed goes well, and is answered with a reset; so does a
    close while there are bytes that were not received, and every close with `linger=0`. A reset
    takes what was not received with it. A close never waits, whatever `linger` says. A dial to a
    host that is cut off waits forever unless there is a connect_timeout.

    Args:
        seed: of everything random. Each connection's behaviour comes from the seed and its number.
        config: of connections and listeners. A `backlog` of None is 128, of 0 it is 1.
        latency: seconds that a message takes one way; a pair of them is a range, drawn for each.
        Bytes stay in order.
        bandwidth: bytes per second, for each direction of a connection; None: no limit.
        buffer_size: bytes in flight and not received, at most, for each direction of a connection;
        then a send waits.
        short: probability that a send puts only a part on its way before it goes on, or a receive
            returns only a part of what is there. The size of the part is random.
        race: probability that a receive which has its bytes can still be cancelled, and puts them
            back then.

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
        self.config = NetworkConfig() if config is None else config
        self._settings = LinkSettings(
            (float(low), float(high)), bandwidth, buffer_size, short, race
        )
        self._hosts = Hosts()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<SimulatedNetwork seed={self.seed}>"

    def host(self, name: str, *, config: NetworkConfig | None = None) -> Network:
        """This network, seen from the host `name`: its dials come from there, and it binds to
        addresses of that host only.

        Args:
            name: any but a wildcard.
            config: of what this view dials and binds; None: the network's.
        """
        if name in WILDCARDS:
            raise ValueError(f"{name!r} is not the name of a host")
        name = resolve(HOME, name)
        self._hosts.known.add(name)
        return _View(self, name, self.config if config is None else config)

    async def bind(self, address: Address) -> NetworkListener:
        """Listens on an address. See Network.bind.

        Args:
            address: of any host. Port 0: the host's next free one, from 49152 on.

        Raises:
            OSError: EADDRINUSE.

        Cancellation: nothing is bound.
        """
        return await self._bind(None, self.config, address)

    async def dial(self, address: Address) -> NetworkStream:
        """Connects to an address, from the host 127.0.0.1; it takes one round trip. See
        Network.dial.

        While the hosts are cut off from each other, or the listener's backlog is full, it waits.

        Raises:
            ConnectionRefusedError: nothing listens there, or `refuse` was called.
            trio.TooSlowError: `config.connect_timeout` was up.

        Cancellation: nothing is left open, and nothing is accepted.
        """
        return await self._dial(HOME, self.config, address)

    # -- faults

    def partition(self, a: HostNames, b: HostNames, *, one_way: bool = False) -> None:
        """Cuts hosts off from each other, until `heal`.

        What has arrived can be received. What is in flight, or sent meanwhile, waits; so do ends
        and resets, and dials, which have to get there and back.

        Args:
            a, b: a host, or several: each of `a` is cut off from each of `b`. A wildcard
                ("0.0.0.0", which a listener may say as its address, "::" or "") means every host
                but the other one, also those that are not known yet.
            one_way: only what `a` sends to `b` is stopped. Acknowledgements are not simulated: what
                `b` sends arrives, and makes room for more when it is received.

        Raises:
            ValueError: a name that nobody has used, with `host`, `bind` or `dial`, or no name at
                all: this fault would hit nothing. A partition that comes before everything else is
                    for hosts that `host` has named.
        """
        self._hosts.cut(a, b, one_way)

    def heal(self, a: HostNames, b: HostNames, *, one_way: bool = False) -> None:
        """Ends a partition. What was stopped sets out again, and arrives one latency (and its time
        on the wire) from now.

        Args, Raises: as of partition. `one_way`: what `b` sends to `a` stays stopped, if it is.
        """
        self._hosts.heal(a, b, one_way)

    def reset(self, a: HostNames, b: HostNames) -> None:
        """Breaks all connections between the hosts now, for both ends: what was not received is
        gone, blocked tasks wake.

        Of one connection: `stream.transport.reset()`.

        Args, Raises: as of partition.
        """
        self._hosts.reset(a, b)

    def refuse(self, address: Address) -> None:
        """From now on dials to `address` are refused, whoever listens there; a wildcard means the
        port of every host.

        Raises:
            ValueError: of the host, as of partition.
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
        """`name` is the host that binds; None: whoever the address names."""
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
        with within(config.connect_timeout):
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
        """Waits until a listener takes the connection. From its return on nothing may wait: there
        is room now."""
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
    """The generators of one connection, by what they decide."""

    seed: int
    number: int

    def __call__(self, name: str) -> random.Random:
        # A string, because its digest seeds, on every machine the same way.
        return random.Random(f"{self.seed} {self.number} {name}")


def _error(code: int, what: str, address: Address) -> OSError:
    return OSError(code, f"cannot {what} {address[0]}:{address[1]}: {os.strerror(code)}")


__all__ = ["SimulatedListener", "SimulatedNetwork", "run_deterministically"]
