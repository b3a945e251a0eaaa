"""What lies between the two ends of a simulated connection: a path, and a pipe per direction.

Rules of this file: nothing runs in the background. What is in flight carries its time of arrival,
and whoever waits for it waits until then. All randomness comes from the connection's generators,
one for each direction and end.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio
from trio.lowlevel import ParkingLot

from .._bytes.chunks import ChunkQueue

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random


@dataclass(frozen=True)
class LinkSettings:
    """How bytes travel. SimulatedNetwork documents and checks these values."""

    latency: tuple[float, float]
    bandwidth: float | None
    buffer_size: int
    short: float
    race: float

    def draw_latency(self, random: Random) -> float:
        low, high = self.latency
        return low if low == high else random.uniform(low, high)

    def draw_part(self, random: Random, count: int) -> int:
        """How many of `count` bytes an operation moves.

        All, or with probability `short` a part, which is tiny as often as large.
        """
        if count < 2 or random.random() >= self.short:
            return count
        return random.randint(1, count >> random.randrange(count.bit_length()))


class End(Protocol):
    """What a path needs of the ends of the connections that use it."""

    outgoing: Pipe

    def wake(self) -> None: ...

    def answer_late_data(self) -> None: ...

    def reset(self) -> None: ...


class Path:
    """The path between two hosts, for both directions.

    Attributes:
        silenced: the hosts from which nothing gets through at the moment.
        ends: the ends of the connections that use it, in the order in which they were made.
    """

    def __init__(self) -> None:
        self.silenced: set[str] = set()
        self.ends: dict[End, None] = {}
        self._changed = ParkingLot()

    @property
    def is_cut(self) -> bool:
        """Whether at least one direction is cut, so that there is no way there and back."""
        return bool(self.silenced)

    async def cross(self, seconds: float) -> None:
        """Waits for as long as a message takes there and back. A message that a cut stops is sent
        again after the heal.

        The path may have been cut at the moment of arrival: check before you go on.
        """
        while True:
            if self.is_cut:
                await self._changed.park()
                continue
            with trio.move_on_after(seconds) as scope:
                await self._changed.park()
            if scope.cancelled_caught:
                return

    def cut(self, senders: Iterable[str]) -> None:
        """Nothing that these hosts send gets through, until `heal`."""
        silent = set(senders) - self.silenced
        if silent:
            self.silenced |= silent
            for end in self._ends_at(silent):
                end.outgoing.hold(trio.current_time())
            self._wake()

    def heal(self, senders: Iterable[str]) -> None:
        healed = self.silenced & set(senders)
        if healed:
            self.silenced -= healed
            for end in self._ends_at(healed):
                end.outgoing.send_again(trio.current_time())
            for end in self.ends:
                end.answer_late_data()
            self._wake()

    def _ends_at(self, hosts: set[str]) -> list[End]:
        return [end for end in self.ends if end.outgoing.host in hosts]

    def reset(self) -> None:
        for end in list(self.ends):
            end.reset()

    def _wake(self) -> None:
        self._changed.unpark_all()
        for end in self.ends:
            end.wake()


class Pipe:
    """One direction: bytes, then perhaps an end or a reset, which arrive in the order sent.

    Attributes:
        host: the host that sends.
        size: bytes in flight, arrived, or taken by a receive that has not returned; at most the
            settings' buffer_size.
        arrived: the bytes that can be received.
        end_at, reset_at: when the end and the reset arrive, in seconds; math.inf: stopped by a cut;
            None: not sent.
    """

    def __init__(
        self, path: Path, host: str, settings: LinkSettings, sender: Random, receiver: Random
    ) -> None:
        self.host = host
        self.settings = settings
        self.sender, self.receiver = sender, receiver
        self.size = 0
        self.arrived = ChunkQueue()
        self.end_at: float | None = None
        self.reset_at: float | None = None
        self._path = path
        self._flight: deque[tuple[float, bytes]] = deque()
        self._free_at = -math.inf  # when the wire has taken everything that was sent
        self._last = -math.inf  # the latest arrival so far: nothing overtakes it

    @property
    def room(self) -> int:
        return self.settings.buffer_size - self.size

    def put(self, data: bytes, now: float) -> None:
        self.size += len(data)
        self._flight.append((self._arrival(len(data), now), data))

    def put_end(self, now: float) -> None:
        self.end_at = self._arrival(0, now)

    def put_reset(self, now: float) -> None:
        if self.reset_at is None:
            self.reset_at = self._arrival(0, now)

    def settle(self, now: float) -> None:
        """Moves what has arrived by now from in flight to arrived."""
        flight = self._flight
        while flight and flight[0][0] <= now:
            self.arrived.append(flight.popleft()[1])

    def has_ended(self, now: float) -> bool:
        return self.end_at is not None and self.end_at <= now and not self.arrived.size

    def first_arrival(self) -> float:
        """When the next bytes arrive; math.inf: none are in flight, or they are stopped."""
        return self._flight[0][0] if self._flight else math.inf

    def next_change(self) -> float:
        """When the next thing of any kind arrives; call it after settle."""
        times = [time for time in (self.end_at, self.reset_at) if time is not None]
        return min(self.first_arrival(), *times) if times else self.first_arrival()

    def hold(self, now: float) -> None:
        """The path was cut: stops what has not arrived yet."""
        self.settle(now)
        self._flight = deque((math.inf, data) for _, data in self._flight)
        self.end_at = math.inf if self.end_at is not None and self.end_at > now else self.end_at
        self.reset_at = (
            math.inf if self.reset_at is not None and self.reset_at > now else self.reset_at
        )

    def send_again(self, now: float) -> None:
        """The path is whole again: what was stopped is sent again."""
        self._free_at = self._last = now
        self._flight = deque((self._arrival(len(data), now), data) for _, data in self._flight)
        if self.end_at == math.inf:
            self.end_at = self._arrival(0, now)
        if self.reset_at == math.inf:
            self.reset_at = self._arrival(0, now)

    def discard(self) -> None:
        self._flight.clear()
        self.arrived.clear()
        self.size = 0

    def _arrival(self, count: int, now: float) -> float:
        """When `count` bytes sent now arrive: after their time on the wire, and then the
        latency."""
        if self.host in self._path.silenced:
            return math.inf
        if self.settings.bandwidth is not None:
            now = self._free_at = max(now, self._free_at) + count / self.settings.bandwidth
        self._last = max(self._last, now + self.settings.draw_latency(self.sender))
        return self._last
