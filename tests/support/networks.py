"""The networks that the behaviour suite runs over, and what its tests share.

A test is an async function whose first argument is a `World`, which makes the networks of that
test, all of one kind. The decorator `everywhere` turns it into a test for each kind, and `on` for
some. Other arguments can be parametrised as usual.

Rules: a test does not know which network it has; `world.is_simulated` may change sizes, never what
is expected. No test sleeps and hopes, and nothing is asserted about the wall clock. A simulated
network runs under a MockClock and a seeded scheduler (TRIO_URING_SEED=<n> for another seed), where
a deadlock is a TooSlowError at once. What holds for every test is checked here: no descriptor is
left, nothing is left in the ring, networks that do not use the ring open none, counters add up,
every connection counted as opened was counted as closed, and an audited simulation has the same
digest when it runs twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import random
import socket
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trio_uring
from trio_uring import (
    Network,
    NetworkConfig,
    NetworkListener,
    NetworkStream,
    TrioNetwork,
    UringNetwork,
)
from trio_uring._driver.run import _current
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically
from trio_uring._observe.networks import Audited, Metered

from .ports import lone_port
from .streams import checked_run, closing, open_descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    Make = Callable[[NetworkConfig], Network]

SEED = int(os.environ.get("TRIO_URING_SEED", "20261123"))
# Seconds for one test, of the real clock or the simulated one; it is for tests that hang.
LIMIT = 60
ANY_PORT = ("127.0.0.1", 0)
BLOCK = random.Random(SEED).randbytes(1 << 20)
PROMPT = 0.01  # seconds for which nothing must happen before a real network counts as quiet


# -- kinds


@dataclass(frozen=True)
class Kind:
    """One kind of network: what makes it, and the wrappers around it, the inner one first."""

    name: str
    make: Make
    wrappers: tuple[Callable[[Network], Any], ...] = ()
    enabled: bool = False  # in a run that trio_uring is enabled in

    @property
    def is_simulated(self) -> bool:
        return self.make in (simulated, hostile)

    @property
    def needs_ring(self) -> bool:
        return self.make is UringNetwork or self.enabled

    def parameter(self) -> Any:
        return pytest.param(
            self, id=self.name, marks=() if self.needs_ring else pytest.mark.no_ring
        )


def simulated(config: NetworkConfig) -> SimulatedNetwork:
    return SimulatedNetwork(SEED, config=config)


def hostile(config: NetworkConfig) -> SimulatedNetwork:
    """Slow, with little room, and hardly ever doing all at once what it is asked for."""
    return SimulatedNetwork(
        SEED,
        config=config,
        latency=(0.0, 0.005),
        bandwidth=50e6,
        buffer_size=5000,
        short=0.8,
        race=0.8,
    )


BASES = {"ring": UringNetwork, "trio": TrioNetwork, "simulated": simulated}
KINDS = [Kind(name, make) for name, make in BASES.items()]
KINDS += [Kind(f"metered {name}", make, (Metered,)) for name, make in BASES.items()]
KINDS += [Kind(f"audited {name}", make, (Audited,)) for name, make in BASES.items()]
KINDS += [Kind(f"enabled {name}", BASES[name], enabled=True) for name in ("trio", "simulated")]
KINDS += [
    Kind("audited metered ring", UringNetwork, (Metered, Audited)),
    Kind("hostile simulated", hostile),
]
SIMULATED = [kind for kind in KINDS if kind.is_simulated]
REAL = [kind for kind in KINDS if not kind.is_simulated]


class World:
    """The networks of one test."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.made: list[Any] = []  # wrappers and networks
        self.random = random.Random(f"{SEED} {kind.name}")
        self.finally_close: list[socket.socket] = []

    @property
    def is_simulated(self) -> bool:
        return self.kind.is_simulated

    def make(self, config: NetworkConfig | None = None, **values: Any) -> Network:
        network: Any = self.kind.make(config or NetworkConfig(**values))
        self.made.append(network)
        for wrapper in self.kind.wrappers:
            network = wrapper(network)
            self.made.append(network)
        return network  # type: ignore[no-any-return]

    def lone_address(self) -> tuple[str, int]:
        """For a listener that will be closed: nobody else will have it then."""
        return ANY_PORT if self.is_simulated else ("127.0.0.1", lone_port())

    def silent_port(self) -> tuple[str, int]:
        """An address at which nothing listens, and nobody else will."""
        if self.is_simulated:
            return ("127.0.0.1", 9)
        sock = socket.socket()
        self.finally_close.append(sock)
        sock.bind(ANY_PORT)
        return sock.getsockname()  # type: ignore[no-any-return]

    async def quiet(self) -> None:
        """Until every task waits for something; on a real network for a while."""
        await trio.testing.wait_all_tasks_blocked(0 if self.is_simulated else PROMPT)

    async def pause(self, most: int = 4) -> None:
        """A few passes of the scheduler, and sometimes a moment, without which simulated bytes
        would never arrive."""
        for _ in range(self.random.randrange(most)):
            await trio.lowlevel.checkpoint()
        if self.random.random() < 0.3:
            await trio.sleep(self.random.random() / 500)

    def check(self) -> None:
        for network in self.made:
            if isinstance(network, Metered):
                check_counters(network.metrics.snapshot())
            if isinstance(network, Audited):
                assert network.audit.events > 0

    def digests(self) -> list[str]:
        return [network.audit.digest() for network in self.made if isinstance(network, Audited)]


def check_counters(counted: Any) -> None:
    assert (counted.open_in, counted.open_out) == (0, 0), counted
    for name, attempts in counted.operations.items():
        errors = sum(count for (operation, _), count in counted.errors.items() if operation == name)
        assert (
            attempts
            == counted.successes[name] + counted.timeouts[name] + counted.cancelled[name] + errors
        ), (name, counted)


# -- running


def on(
    kinds: Iterable[Kind], *, limit: float = LIMIT
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Makes a test of an async function, for each of these kinds of network."""
    parameters = [kind.parameter() for kind in kinds]

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        def run(kind: Kind, **arguments: Any) -> None:
            world = run_once(kind, test, arguments, limit)
            if kind.is_simulated and kind.wrappers == (Audited,):
                assert run_once(kind, test, arguments, limit).digests() == world.digests(), (
                    "two runs, two digests"
                )

        others = list(inspect.signature(test).parameters.values())[1:]
        first = inspect.Parameter("kind", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([first, *others])  # type: ignore[attr-defined]
        run.__name__, run.__qualname__, run.__doc__ = test.__name__, test.__qualname__, test.__doc__
        run.__module__ = test.__module__
        run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("kind", parameters)(run)

    return decorate


everywhere = on(KINDS)


def run_once(
    kind: Kind, test: Callable[..., Awaitable[None]], arguments: dict[str, Any], limit: float
) -> World:
    world = World(kind)
    main = partial(_within_limit, world, test, arguments, limit)
    try:
        if kind.is_simulated:
            run_deterministically(
                main, seed=SEED, instruments=[trio_uring.Enable()] if kind.enabled else []
            )
        elif kind.needs_ring:
            checked_run(main, run=trio_uring.run if kind.enabled else trio.run)
        else:
            before = open_descriptors()
            trio.run(main)
            left = set(open_descriptors().items()) - set(before.items())
            assert not left, f"descriptors left open: {left}"
    finally:
        for sock in world.finally_close:
            sock.close()
    world.check()
    return world


async def _within_limit(
    world: World, test: Callable[..., Awaitable[None]], arguments: dict[str, Any], limit: float
) -> None:
    with trio.fail_after(limit):
        await test(world, **arguments)
    for sock in world.finally_close:
        sock.close()
    if not world.kind.needs_ring:
        with pytest.raises(LookupError):  # it opened no ring
            _current.get()


# -- connections


@contextlib.asynccontextmanager
async def connected(network: Network) -> AsyncIterator[tuple[NetworkStream, NetworkStream]]:
    """A connection: the end that dialled, and the one that accepted."""
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        client, server = await connect(network, listener)
    async with closing(client, server):
        yield client, server


async def connect(
    network: Network, listener: NetworkListener
) -> tuple[NetworkStream, NetworkStream]:
    ends: dict[str, NetworkStream] = {}

    async def accept() -> None:
        ends["server"] = await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        ends["client"] = await network.dial(listener.local_address)
    return ends["client"], ends["server"]


def innermost(wrapper: Any) -> Any:
    """The stream itself, without its observers."""
    while hasattr(wrapper, "wrapped"):
        wrapper = wrapper.wrapped
    return wrapper


def socket_of(stream: NetworkStream) -> Any:
    """The socket of a stream that has one."""
    return innermost(stream).transport.socket


def reset_by_hand(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class CountingSocket:
    """A trio socket that counts its sends, and can take a part only."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.calls: list[tuple[str, int]] = []  # the method, and how many buffers
        self.most: int | None = None  # bytes that a call takes
        self._sock = sock
        self._send, self._sendmsg = sock.send, sock.sendmsg
        sock.send, sock.sendmsg = self.send, self.sendmsg  # type: ignore[method-assign]

    async def send(self, data: Any, flags: int = 0) -> int:
        self.calls.append(("send", 1))
        return await self._send(data[: self.most], flags)

    async def sendmsg(self, buffers: Any, *args: Any) -> int:
        buffers = list(buffers)
        self.calls.append(("sendmsg", len(buffers)))
        if self.most is not None:
            return await self._send(b"".join(buffers)[: self.most])
        return await self._sendmsg(buffers, *args)


# -- data


async def expect(
    error: type[BaseException], call: Callable[..., Awaitable[Any]], *args: Any
) -> None:
    with pytest.raises(error):
        await call(*args)


def blocks(count: int) -> list[memoryview]:
    """`count` bytes in buffers of 1 MiB at most, without memory of their own."""
    block = memoryview(BLOCK)
    return [block[: min(len(BLOCK), count - start)] for start in range(0, count, len(BLOCK))]


def digest_of(buffers: Iterable[Any], count: int | None = None) -> str:
    """Of their first `count` bytes; None: of all."""
    total = hashlib.blake2b()
    for buffer in buffers:
        view = memoryview(buffer)
        if view.format != "B" or view.ndim != 1:  # PyPy reads a cast view byte by byte
            view = view.cast("B")
        view = view if count is None else view[:count]
        count = None if count is None else count - len(view)
        total.update(view)
    return total.hexdigest()


class Sum:
    """Counts and hashes what comes."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.blake2b()

    def add(self, data: Any) -> None:
        self.count += len(data)
        self._digest.update(data)

    async def add_all(self, stream: trio.abc.ReceiveStream) -> None:
        async for chunk in stream:
            self.add(chunk)

    def digest(self) -> str:
        return self._digest.hexdigest()
