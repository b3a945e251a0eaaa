"""Copies one stream to another, one way or both ways.

Between streams of this package, a pump does it in the ring; with any other stream, a loop does it
with the same results.

Rules of this file: a byte that was taken from the source, and that the sink has not taken, goes
back in front of the source. The only exception is a sink that cannot say how much of an interrupted
send it took: what may have been sent is never sent twice.
"""

from __future__ import annotations

import operator
import select
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from .._bytes.abilities import abilities, receiving_end, sending_end, unwrapped
from .._errors import stream_error
from .._messages.frames import Place
from .._network.network import BufferedNetworkStream
from .._streams.endpoint import lease_under
from .loop_sink import LoopSink, LoopSource
from .pump import can_pump, give, take
from .stream_pump import StreamPump

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._streams.receive import ReceiveSide
    from .._streams.send import SendSide

# Bytes that the loop receives at a time, which is the default of trio's own streams.
LOOP_SIZE = 65536


class Relayed(NamedTuple):
    """What `relay` has moved, in bytes."""

    a_to_b: int
    b_to_a: int


@enable_ki_protection
async def copy_stream(
    source: trio.abc.ReceiveStream,
    sink: trio.abc.SendStream,
    *,
    max_bytes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Copies everything from `source` to `sink`, until `source` ends.

    Between two streams of this package (SocketStream, SendStream, ReceiveStream; a
    trio.StapledStream of them) no Python task wakes for the bytes, and this one wakes only once, at
    the end: small messages are received and sent in the ring, and bulk is moved by splice(2). Any
    other stream is served by a loop of receive and send, and so is a subclass that overrides
    send_all or receive_some.

    Neither stream is closed, and no end is sent. Both are busy meanwhile: receiving from `source`
    or sending to `sink` in another task raises trio.BusyResourceError, also through `.socket`. A
    source that is not of this package, or a sink that is neither of this package nor a
    trio.SocketStream, is busy only while the copy waits for it.

    Memory: at most 256 KiB between the two, in buffers or in a pipe, whatever the sink's speed;
    none while `source` is idle.

    Args:
        source: any trio.abc.ReceiveStream. What it has kept from interrupted calls goes first.
        sink: any trio.abc.SendStream. Its `bytes_sent` (if it is a stream or wrapper of this
            package) counts the whole copy, and is 0 when the call begins.
        max_bytes: stop after this many bytes; not one more is taken from `source`. None: no limit.
        progress: called in this task with the number of bytes that the sink has taken so far, each
            time that there are more, but at most once per pass of trio's scheduler; and with the
            final number before an error or a cancellation is raised. An exception that it raises
            stops the copy and is raised by copy_stream. It must not block.

    Returns:
        How many bytes the sink has taken.

    Raises:
        trio.BrokenResourceError, trio.ClosedResourceError: one of the streams is broken, or was
            closed. Between two streams of this package the message says which one. What came before
            an error of the source has been sent.
        trio.BusyResourceError: another task is receiving from `source`, or sending to `sink`.
        ValueError, TypeError: `max_bytes` is negative, or not an integer.

    The streams' own `receive_timeout` and `send_timeout` do not apply: the copy is one call, and
    may be idle for as long as the source is. Put a cancel scope around it.

    Cancellation: no byte is lost or duplicated. The next receive on `source` returns what was taken
    from it and not taken by `sink`. How much the sink took is in its `bytes_sent`, and is the last
    number that `progress` got. If everything had been copied, the call returns. A source that is
    not of this package cannot take bytes back: they are kept for the next copy_stream, relay or
    receive_frame on it (wrap it in a BufferedReceiveStream to get them from any receive). A sink
    that is neither of this package nor a trio.SocketStream (TLS, memory) cannot say how much of the
    interrupted send it took; those bytes, at most 64 KiB, are not sent again.
    """
    if max_bytes is not None and operator.index(max_bytes) < 0:
        raise ValueError("max_bytes must be >= 0")
    source_end: Any = receiving_end(source)
    sink_end: Any = sending_end(sink)
    can = abilities(source_end)
    if (
        can.native_receives
        and abilities(sink_end).native_sends
        and can_pump(lease_under(source_end).receiving, lease_under(sink_end).sending)
    ):
        return await _pump(source_end, sink_end, max_bytes, progress)
    with LoopSink(sink_end, progress) as out:  # counts from 0 in any case
        if can.takes_back:
            return await _loop(source_end, out, max_bytes)
        with Place(source_end) as reader:
            return await _loop(reader, out, max_bytes)


async def _pump(
    source: ReceiveSide,
    sink: SendSide,
    max_bytes: int | None,
    progress: Callable[[int], object] | None,
) -> int:
    """Copies with a pump.

    The pump frees both directions when it ends: later than this coroutine, if that is destroyed.
    """
    out, into = lease_under(sink).sending, lease_under(source).receiving
    await take(out)  # first, because bytes_sent begins at 0 with it
    sink.bytes_sent = 0
    try:
        await take(into)
        try:
            await checkpoint_if_cancelled()
            pump = StreamPump(source, sink, max_bytes)
        except BaseException:
            give(into)
            raise
    except BaseException:
        give(out)
        raise
    return await pump.run(progress)


async def _loop(stream: Any, out: LoopSink, max_bytes: int | None) -> int:
    """Copies with a loop of receive and send."""
    with LoopSource(stream) as source, out.until_closed():
        await trio.lowlevel.checkpoint()
        while max_bytes is None or out.total < max_bytes:
            size = LOOP_SIZE if max_bytes is None else min(LOOP_SIZE, max_bytes - out.total)
            chunk = await source.receive(size)
            if not chunk:
                break
            try:
                await out.send(chunk)
            except BaseException:
                source.put_back(chunk[len(chunk) - out.unsent :])
                raise
        return out.total


async def relay(
    a: trio.abc.Stream, b: trio.abc.Stream, *, progress: Callable[[int, int], object] | None = None
) -> Relayed:
    """Copies both ways between two streams, until both directions have ended.

    When one stream ends, the other's `send_eof` is called, and the opposite direction goes on. A
    stream without send_eof (TLS) cannot be told; the relay then lasts until that stream ends by
    itself. Nothing is closed.

    Args:
        a, b: any trio.abc.Stream. See copy_stream for how each pair is served, and for the memory,
            which is needed for each direction.
        progress: as in copy_stream, with two numbers: the bytes copied from `a` to `b` and from `b`
            to `a`.

    Returns:
        The bytes copied each way, as a tuple (a_to_b, b_to_a).

    Raises:
        Others: the same as copy_stream. An error in one direction ends the other, and is raised; it
            is always the first error, and never in a group. On Linux, the reset of a connection
            that was half-closed is noticed at once, even while nothing is sent to it.

    Cancellation: as in copy_stream, in each direction.
    """
    counts = [0, 0]
    errors: list[BaseException] = []
    watches = trio.CancelScope(), trio.CancelScope()  # for a, while it may still be sent to; for b

    async def one_way(index: int, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        def tell(total: int) -> None:
            counts[index] = total
            if progress is not None:
                progress(*counts)

        told = None if progress is None else tell
        try:
            counts[index] = await copy_stream(source, sink, progress=told)
            watches[1 - index].cancel()
            if abilities(sink).sends_eof:
                await sink.send_eof()  # type: ignore[attr-defined]  # pyright: ignore
            with watches[index]:
                await _until_reset(source)
        except (trio.Cancelled, GeneratorExit):
            raise
        except BaseException as exc:  # the nursery would put it into a group
            errors.append(exc)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_way, 0, a, b)
            nursery.start_soon(one_way, 1, b, a)
    finally:
        if errors:
            first = errors[0]
            errors.clear()  # their tracebacks refer to the frames, which refer to the list
            try:
                raise first
            finally:
                del first
    return Relayed(*counts)


async def _until_reset(stream: trio.abc.Stream) -> None:
    """Watches for a reset of a stream that has ended, and to which nothing may be sent for long.

    A poll in the ring cannot do that, because it always includes POLLRDHUP; an epoll instance that
    is asked for no event reports only EPOLLERR and EPOLLHUP. Returns if there is nothing to watch,
    or if the socket reports nothing but its end.

    Raises:
        trio.BrokenResourceError: the connection is broken.
    """
    sock = _socket_of(stream)
    if sock is None or sys.platform != "linux" or not hasattr(select, "epoll"):
        return
    try:
        watch = select.epoll()
    except OSError:  # no descriptors left: the next send will find out
        return
    try:
        watch.register(sock.fileno(), 0)
        await trio.lowlevel.wait_readable(watch.fileno())
        code = sock.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_ERROR)
    except (OSError, ValueError):  # it was closed: the other direction reports that
        return
    finally:
        watch.close()
    if code:
        raise stream_error(code)


def _socket_of(stream: Any) -> trio.socket.SocketType | None:
    """Returns the socket that a stream sends on."""
    below = unwrapped(stream, sending_end)
    while isinstance(below, (BufferedNetworkStream, trio.SSLStream)):
        inner = (
            below.transport if isinstance(below, BufferedNetworkStream) else below.transport_stream
        )
        below = unwrapped(inner, sending_end)
    sock = getattr(below, "socket", None)
    return sock if isinstance(sock, trio.socket.SocketType) else None
