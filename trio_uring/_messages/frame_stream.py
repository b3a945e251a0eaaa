"""A channel of messages over a stream.

Rules of this file: an interrupted receive loses no message. An interrupted send that may have sent
part of a message breaks the sending side, since the peer would take what follows for the rest of
that message. Only a stream that got everything in one call, and counts what was sent, is believed
when it says that nothing was.
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
from .frames import JOIN_MAX, encode_frame
from .vectored import bytes_of_last_send, send_encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

_T = TypeVar("_T")

_REFUSALS = (trio.BusyResourceError, trio.ClosedResourceError)


class FrameStream(trio.abc.Channel[bytes]):
    """A channel of messages over a stream: each message is a frame.

    Args:
        stream: any trio.abc.Stream, owned from now on.
        max_size: the most bytes that a message may have, in both directions.
        prefix: "u32be" (four bytes, big-endian) or "varint" (unsigned LEB128).

    It receives as much at once as the stream gives, so that each small message costs a fraction of
    a receive. It holds at most one incomplete message and one receive of the stream.
    """

    def __init__(
        self, stream: trio.abc.Stream, max_size: int = MAX_SIZE, *, prefix: Prefix = "u32be"
    ) -> None:
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"FrameStream is made over a trio.abc.Stream, not {stream!r}")
        self.stream = stream
        self._source = receiving_end(stream)
        # The time limit, for the whole message, is set here.
        self._untimed = abilities(self._source).untimed
        self._max_size = check_max_size(max_size)
        self._prefix: Prefix = prefix
        self._decoder = FrameDecoder(max_size, prefix)
        self._next: bytes | None = None  # a complete message that was not yet received
        self._sending = False
        self._receiving = False
        self._broken = False  # part of a frame was sent
        self._closed = False

    @property
    def pending(self) -> int:
        """Bytes held of messages not yet received, complete or not; 0: between two messages."""
        return self._decoder.pending + (0 if self._next is None else len(self._next))

    @enable_ki_protection
    async def send(self, value: Buffer | Sequence[Buffer], *, timeout: float | None = None) -> None:
        """Sends one message, as send_frame does.

        Args:
            value: one buffer, or a sequence of buffers that together make one message.
            timeout: seconds; None: the stream's `send_timeout`, if it has one; math.inf: no limit.

        Raises:
            FrameTooLarge: the message is too large. Nothing was sent.
            trio.BrokenResourceError: an earlier send was interrupted within a message, or the
                connection is broken.
            trio.TooSlowError, trio.BusyResourceError, trio.ClosedResourceError: as in send_all.

        Cancellation: the message was sent completely, not at all, or in part; if in part, every
        later send raises trio.BrokenResourceError. A stream that does not say how much was sent is
        assumed to have sent a part.
        """
        await self._send(encode_frame(value, self._max_size, self._prefix), timeout)

    @enable_ki_protection
    async def send_many(
        self, values: Iterable[Buffer | Sequence[Buffer]], *, timeout: float | None = None
    ) -> None:
        """Sends many messages, in order, as one operation.

        If they are large, it is one operation for each 1,024 buffers or 4 MiB. Messages up to 4 KiB
        are copied into one buffer, so limit how many you give it at once.

        Args:
            values: the messages, each as in send.
            timeout: seconds for all messages together.

        Raises:
            FrameTooLarge: one of the messages is too large. None was sent.
            Others: the same as send.

        Cancellation: as in send; some of the messages may have been sent.
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
                again.
            trio.TooSlowError, trio.BusyResourceError: as in receive_some.
            trio.BrokenResourceError, trio.ClosedResourceError: as in receive_some.

        Cancellation: no message, and no part of one, is lost.
        """
        return await self._receive(timeout, self._take)

    @enable_ki_protection
    async def receive_many(self, *, timeout: float | None = None) -> list[bytes]:
        """Returns every complete message that is already here, or waits for the next.

        The list is never empty. What came before an error is returned first. Args, Raises,
        Cancellation: as in receive.
        """
        return await self._receive(timeout, self._take_all)

    async def send_eof(self) -> None:
        """Ends the sending side: the peer gets trio.EndOfChannel, but can still send.

        Raises:
            AttributeError: the stream has no send_eof.
            Others: the same as the stream's send_eof.

        Cancellation: as in the stream's send_eof.
        """
        stream: Any = self.stream
        await stream.send_eof()

    async def aclose(self) -> None:
        """Closes the stream, and drops what was not received.

        Cancellation: the stream is closed even if the scope is already cancelled.
        """
        self._closed = True
        if not self._receiving:
            self._drop()  # otherwise the task that is receiving does it when it notices
        await self.stream.aclose()

    async def _send(self, data: bytes | list[Any], timeout: float | None) -> None:
        """Sends whole messages; if interrupted, finds out whether the peer can still follow."""
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
            # If cancelled before it began, nothing was sent and nothing is broken.
            await trio.lowlevel.checkpoint_if_cancelled()
            started = True
            await send_encoded(self.stream, data, timeout)
        except BaseException as exc:
            refused, one = isinstance(exc, _REFUSALS), type(data) is bytes
            if refused and (one or abilities(self.stream).lists_by is not None):
                raise  # it was one call, and the stream refused it
            # A destroyed call does not learn what its last operation has sent.
            unknown = isinstance(exc, GeneratorExit)
            self._broken = started and (unknown or bytes_of_last_send(self.stream, one=one) != 0)
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
                if timeout is None:
                    timeout = receive_default(self._source)
                with within(timeout, self, "receive"):
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
    """The buffers of many frames, with small ones joined."""
    buffers: list[Any] = []
    run = bytearray()
    for value in values:
        data = encode_frame(value, max_size, prefix)
        for part in [data] if type(data) is bytes else data:
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
