"""A channel of messages over a stream.

Rules of this file: an interrupted receive loses no message. An interrupted send that may have sent
a part of a message breaks the sending side: the peer would take what follows for the rest of that
message. Only a stream that got all as one call, and counts what went, is believed when it says that
nothing did.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import abilities, receiving_end
from .._bytes.timed import check_timeout, receive_default, within
from .._errors import IncompleteReadError
from ..framing import MAX_SIZE, FrameDecoder, FrameError, Prefix, check_max_size
from .frames import encode_frame
from .vectored import bytes_of_last_send, send_all_vectored, send_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

# Bytes up to which a buffer is joined with its neighbours: a buffer of its own costs the operation
# more than the copy does (and over TLS a record). Measured in docs/design.md.
JOIN_MAX = 1024

_T = TypeVar("_T")


class FrameStream(trio.abc.Channel[bytes]):
    """A channel of messages over a stream: each message is a frame.

    Args:
        stream: any trio.abc.Stream, owned from now on.
        max_size: bytes that a message may have, inclusive, in both directions.
        prefix: "u32be" (four bytes, big-endian) or "varint" (unsigned LEB128).

    It receives as much as the stream gives at once, so that small messages cost a fraction of a
    receive each. A connection holds at most one incomplete message and one receive of the stream.
    """

    def __init__(
        self, stream: trio.abc.Stream, max_size: int = MAX_SIZE, *, prefix: Prefix = "u32be"
    ) -> None:
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"FrameStream is made over a trio.abc.Stream, not {stream!r}")
        self.stream = stream
        self._source = receiving_end(stream)
        # A call's time is limited here, for the whole message.
        self._untimed = abilities(self._source).untimed
        self._max_size = check_max_size(max_size)
        self._prefix: Prefix = prefix
        self._decoder = FrameDecoder(max_size, prefix)
        self._next: bytes | None = None  # a message that is complete, and not yet received
        self._sending = False
        self._receiving = False
        self._broken = False  # a frame was sent in part
        self._closed = False

    @property
    def pending(self) -> int:
        """Bytes that are here of messages that were not received yet, complete or not; 0: between
        two messages."""
        return self._decoder.pending + (0 if self._next is None else len(self._next))

    @enable_ki_protection
    async def send(self, value: Buffer | Sequence[Buffer], *, timeout: float | None = None) -> None:
        """Sends one message, as send_frame does.

        Args:
            value: one buffer, or a sequence of buffers that are one message together.
            timeout: seconds; None: the stream's `send_timeout`, if it has one; math.inf: no limit.

        Raises:
            FrameTooLarge: nothing was sent.
            trio.BrokenResourceError: an earlier send was interrupted within a frame, or the
            connection is broken. trio.TooSlowError, trio.BusyResourceError,
            trio.ClosedResourceError: as send_all.

        Cancellation: the message was sent, or not at all; or in part, and then every later send
        raises trio.BrokenResourceError. Streams that do not say how much went are taken to have
        sent a part.
        """
        buffers = encode_frame(value, self._max_size, self._prefix)
        if len(buffers) == 2 and type(value) is bytes and len(value) <= JOIN_MAX:
            await self._send(b"".join(buffers), timeout)
        else:
            await self._send(buffers, timeout)

    @enable_ki_protection
    async def send_many(
        self, values: Iterable[Buffer | Sequence[Buffer]], *, timeout: float | None = None
    ) -> None:
        """Sends many messages, in order, as one operation (of large ones, one for each 1,024
        buffers or 4 MiB).

        Messages up to 1 KiB are copied into one buffer: bound what you give it at once.

        Args:
            values: the messages, each as of send.
            timeout: seconds for all of them.

        Raises:
            As send. FrameTooLarge for any of them: none was sent.

        Cancellation: as of send; a part of the messages may have been sent.
        """
        await self._send(_join_small(values, self._max_size, self._prefix), timeout)

    @enable_ki_protection
    async def receive(self, *, timeout: float | None = None) -> bytes:
        """Returns the next message.

        Args:
            timeout: seconds; None: the stream's `receive_timeout`, if it has one; math.inf: no
                limit.

        Raises:
            trio.EndOfChannel: the stream ended between two messages.
            IncompleteReadError: the stream ended within a message.
            FrameTooLarge, FrameError: the peer sent what it must not. Every later receive raises it
            again. trio.TooSlowError, trio.BusyResourceError, trio.BrokenResourceError,
            trio.ClosedResourceError: as receive_some.

        Cancellation: no message is lost, nor a part of one.
        """
        return await self._receive(timeout, self._take)

    @enable_ki_protection
    async def receive_many(self, *, timeout: float | None = None) -> list[bytes]:
        """Returns every complete message that is already here, or waits for the next: never an
        empty list.

        Args, Raises, Cancellation: as of receive. What came before an error is returned first.
        """
        return await self._receive(timeout, self._take_all)

    async def send_eof(self) -> None:
        """Ends the sending side: the peer gets trio.EndOfChannel, and can still send.

        Raises:
            AttributeError: the stream has no send_eof.
            As the stream's send_eof.

        Cancellation: as of the stream's send_eof.
        """
        stream: Any = self.stream
        await stream.send_eof()

    async def aclose(self) -> None:
        """Closes the stream, and drops what was not received.

        Cancellation: the stream is closed even if the scope is already cancelled.
        """
        self._closed = True
        if not self._receiving:
            self._drop()  # otherwise the receive that goes on does it when it finds out
        await self.stream.aclose()

    async def _send(self, data: bytes | list[Any], timeout: float | None) -> None:
        """Sends whole messages, and finds out whether the peer can still follow when that was
        interrupted."""
        check_timeout(timeout)
        if self._closed:
            raise trio.ClosedResourceError("this channel was already closed")
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending on this channel")
        if self._broken:
            raise trio.BrokenResourceError(
                "an earlier send was interrupted within a message: the peer cannot follow any more"
            )
        self._sending = True
        started = False
        try:
            # Cancelled before it began: nothing was sent, nothing is broken.
            await trio.lowlevel.checkpoint_if_cancelled()
            started = True
            if isinstance(data, list):
                await send_all_vectored(self.stream, data, timeout=timeout)
            else:
                await send_one(self.stream, data, timeout)
        except BaseException as exc:
            refused = isinstance(exc, (trio.BusyResourceError, trio.ClosedResourceError))
            if refused and (type(data) is bytes or abilities(self.stream).lists_by is not None):
                raise  # it was one call, and the stream would not begin it
            self._broken = started and bytes_of_last_send(self.stream) != 0
            raise
        finally:
            self._sending = False

    async def _receive(self, timeout: float | None, take: Callable[[], _T]) -> _T:
        check_timeout(timeout)
        if self._closed:
            raise trio.ClosedResourceError("this channel was already closed")
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving on this channel")
        self._receiving = True
        try:
            if self._next is None:
                self._next = self._decoder.next_frame()
            if self._next is not None:
                await trio.lowlevel.checkpoint()
                self._check_not_closed()
            else:
                with within(receive_default(self._source) if timeout is None else timeout):
                    await self._fill()
            return take()
        finally:
            self._receiving = False
            if self._closed:
                self._drop()

    async def _fill(self) -> None:
        """Receives until a message is complete."""
        decoder = self._decoder
        while self._next is None:
            chunk = await self._source.receive_some(**self._untimed)
            self._check_not_closed()
            if chunk:
                decoder.feed(bytes(chunk))
            elif decoder.pending:
                raise IncompleteReadError(decoder.partial, len(decoder.partial) + decoder.missing)
            else:
                raise trio.EndOfChannel
            self._next = decoder.next_frame()

    def _take(self) -> bytes:
        message, self._next = self._next, None
        assert message is not None
        return message

    def _take_all(self) -> list[bytes]:
        messages = [self._take()]
        # What came before the error goes first; the decoder raises it again.
        with contextlib.suppress(FrameError):
            messages.extend(self._decoder)
        return messages

    def _check_not_closed(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("another task closed this channel")

    def _drop(self) -> None:
        self._next = None
        self._decoder = FrameDecoder(self._max_size, self._prefix)


def _join_small(
    values: Iterable[Buffer | Sequence[Buffer]], max_size: int, prefix: Prefix
) -> list[Any]:
    """The buffers of many frames, of which small ones are joined."""
    buffers: list[Any] = []
    run = bytearray()
    for value in values:
        for part in encode_frame(value, max_size, prefix):
            if type(part) is bytes and len(part) <= JOIN_MAX:
                run += part
                continue
            if run:
                buffers.append(run)
                run = bytearray()
            buffers.append(part)
    if run:
        buffers.append(run)
    return buffers
