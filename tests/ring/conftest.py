"""The worlds that the contract suite runs in: each kind of ring, with connected descriptors for it.

Rules of this file: a world is a ring, `pair()`, which gives two connected descriptors, and
`settle()`, which flushes and drains until everything that can complete has completed. Nothing
sleeps: a real ring is waited for in the kernel.
"""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any

import pytest

from trio_uring._ring.base import open_rings
from trio_uring._ring.uring import UringRing
from trio_uring.testing import FakeRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from trio_uring._ring.op import Operation


class World:
    """A ring and descriptors for it."""

    def __init__(self, ring: UringRing | FakeRing) -> None:
        self.ring = ring
        self.sockets: list[socket.socket] = []

    def pair(self, capacity: int | None = None) -> tuple[int, int]:
        a, b = socket.socketpair()
        self.sockets += [a, b]
        if capacity is not None:
            for sock in (a, b):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, capacity)
        if isinstance(self.ring, FakeRing):
            self.ring.connect(a.fileno(), b.fileno(), capacity or 65536)
        return a.fileno(), b.fileno()

    def settle(self, *awaited: Operation) -> list[Operation]:
        """Flushes and drains until every awaited operation is done; returns what was drained, in
        order."""
        done: list[Operation] = []
        for _ in range(1000):
            self.ring.flush()
            self.ring.drain(done)
            if all(not op.state.in_kernel for op in awaited):
                return done
            self.ring.turn(1.0, done)
        raise AssertionError(f"not done: {awaited}")

    def close(self) -> None:
        if self.ring in open_rings:
            for op in list(self.ring.table.values()):
                self.ring.cancel(op)
            self.settle(*self.ring.table.values())
            assert self.ring.close()
        for sock in self.sockets:
            sock.close()


RINGS: dict[str, Callable[[], UringRing | FakeRing]] = {
    "uring-coop": functools.partial(UringRing, "coop"),
    "uring-defer": UringRing,
    "uring-restricted": functools.partial(UringRing, restrict=True),
    "uring-plain": functools.partial(UringRing, "plain"),
    "uring-tiny": functools.partial(UringRing, "coop", 16, 16),
    "uring-without-buffers": functools.partial(UringRing, provide_buffers=False),
    "fake": FakeRing,
    "fake-slow": functools.partial(FakeRing, 1, slow=0.5, short=0.2, refuse=0.2),
}


WITH_BUFFERS = sorted(name for name in RINGS if not name.endswith("without-buffers"))
# Sockets are really connected.
OF_KERNEL = sorted(name for name in RINGS if not name.startswith("fake"))


def _params(names: Iterable[str]) -> list[Any]:
    only = pytest.mark.uring_only("it is the kernel's ring")
    return [
        pytest.param(name, marks=[only] if name.startswith("uring") else [])
        for name in sorted(names)
    ]


of_each_ring = pytest.mark.parametrize("name", _params(RINGS))  # for tests in a child


def _world(name: str) -> Iterator[World]:
    world = World(RINGS[name]())
    yield world
    world.close()


@pytest.fixture(params=_params(WITH_BUFFERS))
def world_with_buffers(request: pytest.FixtureRequest) -> Iterator[World]:
    for world in _world(request.param):
        assert world.ring.info.provided_buffers
        yield world


@pytest.fixture(params=_params(RINGS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from _world(request.param)


@pytest.fixture(params=_params(OF_KERNEL))
def kernel_world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from _world(request.param)


@pytest.fixture(params=_params(set(WITH_BUFFERS) & set(OF_KERNEL)))
def kernel_world_with_buffers(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from _world(request.param)
