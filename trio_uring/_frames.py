"""Frames over streams: a prefix and a payload leave in one vectored operation, and arrive as they were sent.

Rules of this file: the codec is `framing`. An interrupted receive keeps its place: no byte of a frame is lost. An interrupted
send that may have sent a part of a frame breaks the sending side of a FrameStream: the peer would take what follows for the
rest of that frame.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import trio

from ._buffered import BufferedReceiveStream
from ._errors import IncompleteReadError
from ._receive import ReceiveSide
from ._send import SendSide, buffer_list
from ._vectored import send_all_vectored, within
from .framing import (
    MAX_SIZE,
    FrameDecoder,
    FrameError,
    FrameTooLarge,
    Prefix,
    check_max_size,
    check_prefix,
    decode_prefix,
    encode_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

COALESCE_MAX = 1024  # bytes; measured in docs/design.md

# Errors of a send that come before its first byte.
_NOTHING_SENT = (trio.BusyResourceError, trio.ClosedResourceError, TypeError, ValueError, BufferError)

# What an interrupted receive_frame had of a stream that cannot take bytes back. Empty but for such streams.
_interrupted: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()


async def send_frame(
    stream: trio.abc.SendStream,
    payload: Buffer | Sequence[Buffer],
    max_size: int = MAX_SIZE,
    *,
    prefix: Prefix = "u32be",
    timeout: float | None = None,
) -> None:
    """Sends one frame: prefix and payload in one vectored operation, without copying the payload.

    Args:
        stream: any trio.abc.SendStream; see send_all_vectored for how each kind is served.
        payload: one buffer, or a sequence of buffers that are one frame together. It may be empty. Borrowed until the call
            returns.
        max_size: bytes that the payload may have, inclusive.
        prefix: "u32be" (four bytes, big-endian) or "varint" (unsigned LEB128).
        timeout: seconds; None: the stream's `send_timeout`, if it has one; math.inf: no limit.

    Raises:
        FrameTooLarge: the payload is larger than max_size. Nothing was sent.
        trio.TooSlowError, trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError: as send_all.
        TypeError: `payload` is not a buffer or a sequence of buffers. Nothing was sent.

    Cancellation: a part of the frame may have been sent; then only closing the stream is left to do. `bytes_sent` of the stream
    says how much, if the stream has it.
    """
    buffers = _encode(payload, check_max_size(max_size), prefix)
    if isinstance(stream, SendSide):
        await stream.send_all(buffers, timeout=timeout)
    else:
        await send_all_vectored(stream, buffers, timeout=timeout)


async def receive_frame(
    stream: trio.abc.ReceiveStream, max_size: int = MAX_SIZE, *, prefix: Prefix = "u32be", timeout: float | None = None
) -> bytes:
    """Receives one frame, and not a byte more than that.

    Best over a stream that buffers (BufferedReceiveStream, the streams of a Network); for many frames see FrameStream.

    Args:
        stream: any trio.abc.ReceiveStream.
        max_size: bytes that the payload may have, inclusive. Memory grows with what came, never ahead of it.
        prefix: as of send_frame.
        timeout: seconds for the whole call; None: the stream's `receive_timeout`, if it has one; math.inf: no limit.

    Returns:
        The payload.

    Raises:
        FrameTooLarge: the prefix says more than max_size. Nothing was allocated for it; a later call finds the same prefix.
        FrameError: the varint prefix is malformed.
        IncompleteReadError: the stream ended; its `partial` is b"" if it ended between two frames.
        trio.TooSlowError, trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError: as receive_some.

    Cancellation: no byte is lost: the next receive_frame on the same stream goes on where this one was. A stream that cannot
    take bytes back (one that is not of this package) must then be read with receive_frame only.
    """
    check_max_size(max_size)
    check_prefix(prefix)
    if isinstance(stream, (BufferedReceiveStream, ReceiveSide)):
        reader: Any = stream
    else:
        reader = _LastingReader(stream)
    if timeout is None:
        timeout = getattr(stream, "receive_timeout", None)
    with within(timeout):
        try:
            return await _receive_frame(reader, max_size, prefix)
        finally:
            if isinstance(reader, _LastingReader):
                reader.keep_rest()


async def _receive_frame(reader: Any, max_size: int, prefix: Prefix) -> bytes:
    head = b""
    done = False
    try:
        while (decoded := decode_prefix(head, prefix)) is None:
            head += await reader.receive_exactly(4 if prefix == "u32be" else 1, timeout=math.inf)
        size = decoded[0]
        if size > max_size:
            raise FrameTooLarge(size, max_size)
        payload: bytes = await reader.receive_exactly(size, timeout=math.inf) if size else b""
        done = True
        return payload
    except IncompleteReadError as exc:
        if head and not exc.partial:  # it ended within a frame all the same
            raise IncompleteReadError(head, len(head) + (exc.expected or 0)) from None
        raise
    finally:
        if head and not done:
            reader._put_back([head])


class _LastingReader(BufferedReceiveStream):
    """Exact reads of a stream that has none, or that cannot take bytes back; what it holds at the end outlasts it."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        super().__init__(stream, 0)
        self._put_back([_interrupted.pop(stream, b"")])

    def keep_rest(self) -> None:
        if self._queue.size:
            _interrupted[self.stream] = self._queue.take_all()


def _encode(payload: Buffer | Sequence[Buffer], max_size: int, prefix: Prefix) -> list[Any]:
    """The buffers of one frame, the prefix first."""
    if type(payload) is bytes:  # what most payloads are
        size = len(payload)
        if size > max_size:
            raise FrameTooLarge(size, max_size)
        return [encode_prefix(size, prefix), payload]
    buffers = buffer_list(payload)
    size = 0
    for buffer in buffers:
        with memoryview(buffer) as view:
            size += view.nbytes
    if size > max_size:
        raise FrameTooLarge(size, max_size)
    return [encode_prefix(size, prefix), *buffers]


class FrameStream(trio.abc.Channel[bytes]):
    """A channel of messages over a stream: each message is a frame.

    Args:
        stream: any trio.abc.Stream, owned from now on.
        max_size: bytes that a message may have, inclusive, in both directions.
        prefix: "u32be" (four bytes, big-endian) or "varint" (unsigned LEB128).

    It receives as much as the stream gives at once, so that small messages cost a fraction of a receive each. A connection
    holds at most one incomplete message and one receive of the stream.
    """

    def __init__(self, stream: trio.abc.Stream, max_size: int = MAX_SIZE, *, prefix: Prefix = "u32be") -> None:
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"FrameStream is made over a trio.abc.Stream, not {stream!r}")
        self.stream = stream
        self._max_size = check_max_size(max_size)
        self._prefix: Prefix = prefix
        self._decoder = FrameDecoder(max_size, prefix)
        self._ready: deque[bytes] = deque()  # complete, and not yet received
        self._sending = False
        self._receiving = False
        self._broken = False  # a frame was sent in part
        self._closed = False

    async def send(self, value: Buffer | Sequence[Buffer], *, timeout: float | None = None) -> None:
        """Sends one message, as send_frame does.

        Args:
            value: one buffer, or a sequence of buffers that are one message together.
            timeout: seconds; None: the stream's `send_timeout`, if it has one; math.inf: no limit.

        Raises:
            FrameTooLarge: nothing was sent.
            trio.BrokenResourceError: an earlier send was interrupted within a frame, or the connection is broken.
            trio.TooSlowError, trio.BusyResourceError, trio.ClosedResourceError: as send_all.

        Cancellation: the message was sent, or not at all; or in part, and then every later send raises
        trio.BrokenResourceError. Streams that do not say how much went are taken to have sent a part.
        """
        await self._send(_encode(value, self._max_size, self._prefix), timeout)

    async def send_many(self, values: Iterable[Buffer | Sequence[Buffer]], *, timeout: float | None = None) -> None:
        """Sends many messages, in order, as one operation (one for each 1,024 buffers or 4 MiB).

        Args:
            values: the messages, each as of send.
            timeout: seconds for all of them.

        Raises:
            As send. FrameTooLarge for any of them: none was sent.

        Cancellation: as of send; a part of the messages may have been sent.
        """
        await self._send(_coalesce(values, self._max_size, self._prefix), timeout)

    async def receive(self, *, timeout: float | None = None) -> bytes:
        """Returns the next message.

        Args:
            timeout: seconds; None: the stream's `receive_timeout`, if it has one; math.inf: no limit.

        Raises:
            trio.EndOfChannel: the stream ended between two messages.
            IncompleteReadError: the stream ended within a message.
            FrameTooLarge, FrameError: the peer sent what it must not. Every later receive raises it again.
            trio.TooSlowError, trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError: as receive_some.

        Cancellation: no message is lost, nor a part of one.
        """
        return (await self._receive(timeout, 1))[0]

    async def receive_many(self, *, timeout: float | None = None) -> list[bytes]:
        """Returns every complete message that is already here, or waits for the next: never an empty list.

        Args, Raises, Cancellation: as of receive. What came before an error is returned first.
        """
        return await self._receive(timeout, None)

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
        await self.stream.aclose()

    async def _send(self, buffers: list[Any], timeout: float | None) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was already closed")
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending on this channel")
        if self._broken:
            raise trio.BrokenResourceError("an earlier send was interrupted within a message: the peer cannot follow any more")
        self._sending = True
        started = False
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # cancelled before it began: nothing was sent, nothing is broken
            started = True
            await send_all_vectored(self.stream, buffers, timeout=timeout)
        except _NOTHING_SENT:
            raise
        except BaseException:
            self._broken = started and getattr(self.stream, "bytes_sent", None) != 0
            raise
        finally:
            self._sending = False

    async def _receive(self, timeout: float | None, most: int | None) -> list[bytes]:
        if self._closed:
            raise trio.ClosedResourceError("this channel was already closed")
        if self._receiving:
            raise trio.BusyResourceError("another task is currently receiving on this channel")
        self._receiving = True
        try:
            if self._ready:
                await trio.lowlevel.checkpoint()
            else:
                if timeout is None:
                    timeout = self._receive_timeout
                with within(timeout):
                    await self._fill()
            if most == 1:
                return [self._ready.popleft()]
            frames = list(self._ready)
            self._ready.clear()
            return frames
        finally:
            self._receiving = False

    @property
    def _receive_timeout(self) -> float | None:
        timeout: float | None = getattr(self.stream, "receive_timeout", None)
        return timeout

    async def _fill(self) -> None:
        """Receives until at least one message is there."""
        decoder, stream = self._decoder, self.stream
        # The time is for the whole message, and already running: a stream of ours must not add its own for each receive.
        arguments: Any = {"timeout": math.inf} if hasattr(stream, "receive_timeout") else {}
        while not self._ready:
            decoder.check()
            chunk = await stream.receive_some(**arguments)
            if chunk:
                decoder.feed(bytes(chunk))
            elif decoder.pending:
                raise IncompleteReadError(decoder.partial, len(decoder.partial) + decoder.missing)
            else:
                raise trio.EndOfChannel
            try:
                self._ready.extend(decoder)
            except FrameError:
                if not self._ready:  # what came before the error is delivered first; `check` raises it after that
                    raise


def _coalesce(values: Iterable[Buffer | Sequence[Buffer]], max_size: int, prefix: Prefix) -> list[Any]:
    """The buffers of many frames. Small ones are joined: each buffer of an operation costs more than copying them does."""
    buffers: list[Any] = []
    run = bytearray()
    for value in values:
        for part in _encode(value, max_size, prefix):
            if type(part) is bytes and len(part) <= COALESCE_MAX:
                run += part
                continue
            if run:
                buffers.append(run)
                run = bytearray()
            buffers.append(part)
    if run:
        buffers.append(run)
    return buffers
