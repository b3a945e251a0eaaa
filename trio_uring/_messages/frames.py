"""Frames over streams: prefix and payload, sent as one vectored operation, and received whole.

Rules of this file: the codec is in `framing`. An interrupted receive keeps its place, and no byte
of a frame is lost.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import abilities, put_back, receiving_end
from .._bytes.outgoing import buffer_list, buffer_view
from .._bytes.timed import receive_default, within
from .._errors import IncompleteReadError
from ..framing import (
    MAX_SIZE,
    U32BE,
    FrameTooLarge,
    Prefix,
    check_max_size,
    check_prefix,
    decode_prefix,
    encode_prefix,
)
from .buffered import BufferedReceiveStream
from .vectored import send_encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer


# Bytes up to which a buffer is joined with its neighbours: one more buffer (and over TLS, a record)
# costs an operation more than copying it. docs/design.md has the figures.
JOIN_MAX = 4096


@enable_ki_protection
async def send_frame(
    stream: trio.abc.SendStream,
    payload: Buffer | Sequence[Buffer],
    max_size: int = MAX_SIZE,
    *,
    prefix: Prefix = "u32be",
    timeout: float | None = None,
) -> None:
    """Sends one frame: prefix and payload in one operation.

    A payload in `bytes` of at most 4 KiB is copied behind its prefix; any other is not copied.

    Args:
        stream: any trio.abc.SendStream; see send_all_vectored for how each kind is served.
        payload: one buffer, or a sequence of buffers that together make one frame. It may be empty,
            and is borrowed until the call returns.
        max_size: the most bytes that the payload may have.
        prefix: "u32be" (four bytes, big-endian) or "varint" (unsigned LEB128).
        timeout: seconds; None: the stream's `send_timeout`, if it has one; math.inf: no limit.

    Raises:
        FrameTooLarge: the payload is larger than max_size. Nothing was sent.
        trio.TooSlowError, trio.BusyResourceError: as in send_all.
        trio.BrokenResourceError, trio.ClosedResourceError: as in send_all.
        TypeError: `payload` is not a buffer or a sequence of buffers. Nothing was sent.

    Cancellation: part of the frame may have been sent; then all that remains is to close the
    stream. The stream's `bytes_sent`, if it has one, says how much was sent.
    """
    await send_encoded(stream, encode_frame(payload, check_max_size(max_size), prefix), timeout)


def encode_frame(
    payload: Buffer | Sequence[Buffer], max_size: int, prefix: Prefix
) -> bytes | list[Any]:
    """The buffers of one frame, the prefix first; or all of it, if the payload is small.

    Raises:
        FrameTooLarge: the payload is larger than `max_size`.
        TypeError, BufferError: something is not a buffer that can be sent.
    """
    if type(payload) is bytes:  # as most payloads are
        size = len(payload)
        if size > max_size:
            raise FrameTooLarge(size, max_size)
        head = U32BE.pack(size) if prefix == "u32be" else encode_prefix(size, prefix)
        return head + payload if size <= JOIN_MAX else [head, payload]
    buffers = buffer_list(payload)
    size = 0
    for buffer in buffers:
        with buffer_view(buffer) as view:
            size += view.nbytes
    if size > max_size:
        raise FrameTooLarge(size, max_size)
    return [encode_prefix(size, prefix), *buffers]


@enable_ki_protection
async def receive_frame(
    stream: trio.abc.ReceiveStream,
    max_size: int = MAX_SIZE,
    *,
    prefix: Prefix = "u32be",
    timeout: float | None = None,
) -> bytes:
    """Receives one frame, and not a byte more.

    It works best over a stream that buffers (BufferedReceiveStream, the streams of a Network). For
    many frames, see FrameStream.

    Args:
        stream: any trio.abc.ReceiveStream.
        max_size: the most bytes that the payload may have. Memory grows with what has come, never
            ahead of it.
        prefix: as in send_frame.
        timeout: seconds for the whole call; None: the stream's `receive_timeout`, if it has one;
            math.inf: no limit.

    Returns:
        The payload.

    Raises:
        FrameTooLarge: the prefix says more than max_size. Nothing was allocated for the payload,
            and a later call finds the same prefix.
        FrameError: the varint prefix is malformed.
        IncompleteReadError: the stream ended. The error's `partial` is b"" if it ended between two
            frames.
        TypeError: the stream is not of this package and does not support weak references: wrap it
            in a BufferedReceiveStream.
        trio.TooSlowError, trio.BusyResourceError: as in receive_some.
        trio.BrokenResourceError, trio.ClosedResourceError: as in receive_some.

    Cancellation: no byte is lost. The next receive_frame on the same stream object goes on where
    this one stopped. A stream that cannot take bytes back (one that is not of this package) must
    then be read with receive_frame only.
    """
    check_max_size(max_size)
    check_prefix(prefix)
    source = receiving_end(stream)
    takes_back = abilities(source).takes_back
    if takes_back and isinstance(source, BufferedReceiveStream):
        whole = source._whole_frame(max_size, prefix)
        if whole is not None:
            return await source._take(whole[0], timeout, whole[1])
    if timeout is None:
        timeout = receive_default(source)
    with within(timeout, source, "receive_frame"):
        if takes_back:
            return await _receive_frame(source, max_size, prefix)
        with Place(source) as reader:
            return await _receive_frame(reader, max_size, prefix)


async def _receive_frame(reader: Any, max_size: int, prefix: Prefix) -> bytes:
    head = b""
    done = False
    try:
        while (decoded := decode_prefix(head, prefix)) is None:
            head += await reader.receive_exactly(4 if prefix == "u32be" else 1, timeout=math.inf)
        size = decoded[0]
        if size > max_size:
            raise FrameTooLarge(size, max_size)
        payload = await reader.receive_exactly(size, timeout=math.inf) if size else b""
        done = True
        return payload
    except IncompleteReadError as exc:
        if head and not exc.partial:  # it still ended within a frame
            raise IncompleteReadError(head, len(head) + (exc.expected or 0)) from None
        raise
    finally:
        if head and not done:
            put_back(reader, [head])


# What an interrupted receive_frame had received from a stream that cannot take bytes back, by the
# stream's id; None while a call goes on. An entry exists only while a frame is incomplete, and is
# removed with its stream (by the callback of the weak reference).
_kept: dict[int, bytes | None] = {}
_watched: dict[int, weakref.ref[Any]] = {}


class Place:
    """The place of receive_frame in a stream that cannot take bytes back, from one call to the
    next."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._key = key = id(stream)
        if _kept.get(key, b"") is None:
            raise trio.BusyResourceError("another task is currently receiving data on this stream")
        try:
            watched = weakref.ref(stream, lambda _: _forget(key))
        except TypeError:
            what = type(stream).__name__
            raise TypeError(
                f"{what} has no weak references: wrap it in a BufferedReceiveStream to receive "
                "frames"
            ) from None
        self._reader = BufferedReceiveStream(stream, 0)
        put_back(self._reader, [_kept.get(key) or b""])
        _kept[key], _watched[key] = None, watched

    def __enter__(self) -> BufferedReceiveStream:
        return self._reader

    def __exit__(self, *_: object) -> None:
        rest = self._reader._take_back()
        if rest:
            _kept[self._key] = rest
        else:
            _forget(self._key)


def _forget(key: int) -> None:
    _kept.pop(key, None)
    _watched.pop(key, None)
