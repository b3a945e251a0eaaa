"""One end of a simulated connection: what TCP does for a stream, over two pipes in memory.

Rules of this file: state changes only between two schedule points, and every change wakes the tasks
that it concerns, which then look again. A byte is in flight, arrived, held by one receive, or
returned. Errors last, and so does the end of the stream.
"""

from __future__ import annotations

import errno
import math
import operator
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import (
    ParkingLot,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
)

from .._bytes.abilities import Abilities
from .._bytes.outgoing import Outgoing
from .._bytes.timed import within
from .._errors import stream_error
from .link import LinkSettings, Path, Pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from typing_extensions import Buffer

RECEIVE_DEFAULT = 65536  # most bytes of a receive that does not say how many


class SimulatedTransport(trio.abc.HalfCloseableStream):
    """One end of a connection, without addresses and timeouts: what TCP does, with bytes in memory.

    Args:
        path: the path between the two hosts.
        outgoing, incoming: the pipes of the two directions.
        linger: False: a close resets the connection (so_linger=0).
        on_close: called once, when this end is closed.

    Attributes:
        bytes_sent: bytes of the current or last send that went into the pipe; every send resets it.
    """

    _abilities = Abilities(counts=True, keeps_sends=True)

    def __init__(
        self,
        path: Path,
        outgoing: Pipe,
        incoming: Pipe,
        *,
        linger: bool = True,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        self.bytes_sent = 0
        self.outgoing, self.incoming = outgoing, incoming
        self.peer = self
        self._path, self._linger, self._on_close = path, linger, on_close
        self._can_send, self._can_receive = ParkingLot(), ParkingLot()
        self._sending = self._receiving = self.closed = self._ended = self._shut = False
        self._receives = 0  # calls so far
        self._taken = 0  # bytes that a receive holds
        self._broken: int | None = None  # the errno of what broke it
        path.ends[self] = None

    # -- sending

    async def send_all(self, data: Buffer | Sequence[Buffer]) -> None:
        """Sends one buffer, or a sequence of buffers in order.

        Raises:
            trio.BusyResourceError: another task is sending on this stream.
            trio.BrokenResourceError: the connection is broken, or was reset.
            trio.ClosedResourceError: this stream, or its sending half, was closed.
            TypeError: `data` is not a buffer or a sequence of buffers. Nothing was sent.

        Cancellation: a part may have been sent; `bytes_sent` says how much.
        """
        await self._send(data)

    async def send_all_vectored(
        self, buffers: Iterable[Buffer], *, timeout: float | None = None
    ) -> None:
        """Like send_all with a list.

        `timeout` is in seconds; None and math.inf: no limit. When it is up, trio.TooSlowError is
        raised.

        Cancellation: as in send_all.
        """
        with within(timeout, self, "send_all_vectored"):
            await self._send(list(buffers))

    @enable_ki_protection
    async def _send(self, data: Buffer | Sequence[Buffer]) -> None:
        with Outgoing(data) as out:
            self._begin_send()
            try:
                await checkpoint_if_cancelled()
                if not await self._send_outgoing(out):
                    await cancel_shielded_checkpoint()
            finally:
                self._sending = False

    async def _send_outgoing(self, out: Outgoing) -> bool:
        """Sends all of `out`; returns whether it passed a schedule point."""
        waited, pipe = False, self.outgoing
        while not out.done:
            while pipe.room <= 0:
                await self._wait(self._can_send)
                self._check_can_send()
                waited = True
            most = min(pipe.room, len(out.first()))
            count = pipe.settings.draw_part(pipe.sender, most)
            self._put(out.take(count))
            if count < most:  # like a kernel's short write: the rest is another operation
                await checkpoint()
                self._check_can_send()
                waited = True
        return waited

    def _put(self, data: bytes) -> None:
        self.outgoing.put(data, trio.current_time())
        self.bytes_sent += len(data)
        self.peer.answer_late_data()
        self.peer.wake_receiver()

    def _begin_send(self) -> None:
        self._begin_sending()
        self.bytes_sent = 0

    def _begin_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending data on this stream")
        self._check_can_send()
        self._sending = True

    def _check_can_send(self) -> None:
        self._check()
        if self.outgoing.end_at is not None:
            raise trio.ClosedResourceError("can't send data after sending EOF")

    @enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Waits until there is room (trio.abc.SendStream). Errors as in send_all.

        Cancellation: it stops waiting.
        """
        self._begin_sending()
        try:
            await checkpoint()
            self._check_can_send()
            while self.outgoing.room <= 0:
                await self._wait(self._can_send)
                self._check_can_send()
        finally:
            self._sending = False

    @enable_ki_protection
    async def send_eof(self) -> None:
        """Ends what this end sends (trio.abc.HalfCloseableStream).

        Errors as in send_all. Doing it twice is allowed.

        Cancellation: if it is cancelled, nothing was ended.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending data on this stream")
        self._check()
        self._sending = True
        try:
            await checkpoint()
            self._check()
            if self.outgoing.end_at is None:
                self.outgoing.put_end(trio.current_time())
                self.peer.wake_receiver()
        finally:
            self._sending = False

    # -- receiving

    @enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Returns some of the bytes that have arrived; b"" at the end.

        Raises:
            trio.BusyResourceError: another task is receiving on this stream.
            trio.BrokenResourceError: the connection was reset. What had not been received is lost.
            trio.ClosedResourceError: this stream was closed.
            TypeError, ValueError: `max_bytes` is not an integer, or less than 1.

        Cancellation: no byte is lost; what an interrupted call had taken is put back.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving data on this stream")
        self._check_open()
        self._receiving = True
        self._receives += 1
        try:
            await checkpoint_if_cancelled()
            waited = False
            while not self._can_return():
                await self._wait(self._can_receive)
                waited = True
            return await self._take(max_bytes or RECEIVE_DEFAULT, waited)
        finally:
            self._receiving = False

    def _can_return(self) -> bool:
        """Whether bytes or the end are here. Once the end was returned it stays: a reset that comes
        later only concerns sending."""
        self._check_open()
        if self._ended:
            return True
        self._check()
        now = trio.current_time()
        self.incoming.settle(now)
        here = self.incoming.arrived.size > 0
        self._ended = self.incoming.has_ended(now) or (self._shut and not here)
        return self._ended or here

    async def _take(self, max_bytes: int, waited: bool) -> bytes:
        pipe = self.incoming
        if self._ended:
            if not waited:
                await cancel_shielded_checkpoint()
            return b""
        count = pipe.settings.draw_part(pipe.receiver, min(max_bytes, pipe.arrived.size))
        chunk = pipe.arrived.take(count)
        # On a ring, the completion may already be there when the task is cancelled: the bytes have
        # left the socket.
        races = pipe.receiver.random() < pipe.settings.race
        if races or not waited:
            self._taken = count
            try:
                if races:
                    await checkpoint()
                else:
                    await cancel_shielded_checkpoint()
            except BaseException:
                if self._broken is None:
                    pipe.arrived.prepend(chunk)
                raise
            finally:
                self._taken = 0
            self._check_open()
        if self._broken is None:
            pipe.size -= count
            self.peer.wake_sender()
        return chunk

    def waits_since(self) -> float | None:
        """Which receive waits, as a number that no other has; None: none does, or a send does."""
        return self._receives if self._can_receive and not self._can_send else None

    def end_receiving(self) -> None:
        """Ends what this end receives, after what has arrived, as shutdown(SHUT_RD) does."""
        self._shut = True
        self.wake_receiver()

    # -- the end

    async def aclose(self) -> None:
        """Closes this end.

        What was sent still arrives, unless there are bytes that were not received, or so_linger is
        0.

        Cancellation: the stream is closed even if the scope is already cancelled.
        """
        self.close()
        await checkpoint()

    @enable_ki_protection
    def close(self, *, abort: bool = False) -> None:
        """Closes at once.

        It sends a reset if `abort`, if something that has arrived was not received, or if so_linger
        is 0.
        """
        if self.closed:
            return
        now = trio.current_time()
        self.incoming.settle(now)
        unread = self.incoming.arrived.size + self._taken
        self.closed = True
        if self._on_close is not None:
            self._on_close()
        if self._broken is None and not self.peer.closed:
            if unread or abort or not self._linger:
                self.outgoing.put_reset(now)
            elif self.outgoing.end_at is None:
                self.outgoing.put_end(now)
            self.answer_late_data()
        self.wake()
        self.peer.wake()
        if self.peer.closed:
            self.leave()
            self.peer.leave()

    def reset(self) -> None:
        """Breaks the connection now, for both ends. What was not received is lost."""
        self.break_off(errno.ECONNRESET)
        self.peer.break_off(errno.ECONNRESET)

    def answer_late_data(self) -> None:
        """If this end is closed, answers the first bytes that still arrive with a reset."""
        if self.closed and self.incoming.first_arrival() < math.inf:
            self.outgoing.put_reset(max(self.incoming.first_arrival(), trio.current_time()))

    def wake(self) -> None:
        self.wake_sender()
        self.wake_receiver()

    def wake_sender(self) -> None:
        if self._can_send:
            self._can_send.unpark_all()

    def wake_receiver(self) -> None:
        if self._can_receive:
            self._can_receive.unpark_all()

    async def _wait(self, lot: ParkingLot) -> None:
        """Waits until something changes or arrives."""
        pipe = self.incoming
        deadline = pipe.next_change() if lot is self._can_receive else pipe.reset_at
        if deadline is None or deadline == math.inf:
            await lot.park()
        else:
            with trio.move_on_at(deadline):
                await lot.park()

    def _check(self) -> None:
        self._check_open()
        pipe = self.incoming
        if (
            self._broken is None
            and pipe.reset_at is not None
            and pipe.reset_at <= trio.current_time()
        ):
            # As in the kernel: a reset after the other side's end is a broken pipe.
            self.break_off(errno.ECONNRESET if pipe.end_at is None else errno.EPIPE)
        if self._broken is not None:
            raise stream_error(self._broken)

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this stream was closed")

    def break_off(self, code: int) -> None:
        if self._broken is None:
            self._broken = code
            self.incoming.discard()
            self.outgoing.discard()
            self.leave()
            if self.peer.closed:
                self.peer.leave()
            self.wake()

    def leave(self) -> None:
        self._path.ends.pop(self, None)


def connect(
    path: Path,
    hosts: tuple[str, str],
    settings: LinkSettings,
    generator: Callable[[str], Random],
    lingers: tuple[bool, bool],
    on_close: Callable[[], object],
) -> tuple[SimulatedTransport, SimulatedTransport]:
    """Makes a connection: the dialling end, whose close calls `on_close`, and the accepting end.

    Args:
        hosts: the hosts of the two ends.
        generator: returns the connection's generator with a given name.
        lingers: whether each of the two ends lingers.
    """
    dialler, listener = hosts
    there = Pipe(
        path, dialler, settings, generator("dialler sends"), generator("listener receives")
    )
    back = Pipe(
        path, listener, settings, generator("listener sends"), generator("dialler receives")
    )
    first = SimulatedTransport(path, there, back, linger=lingers[0], on_close=on_close)
    second = SimulatedTransport(path, back, there, linger=lingers[1])
    first.peer, second.peer = second, first
    return first, second
