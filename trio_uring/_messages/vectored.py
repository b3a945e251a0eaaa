"""Sends a list of buffers to any stream, without joining them.

Rules of this file: a stream that can send a list in one call does so itself (`abilities`); for a
trio.SocketStream it is done here. The rule of timeouts is the same for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import Abilities, abilities, list_sender, sending_end
from .._bytes.cork import Cork, cork_of, put_cork, uncork
from .._bytes.outgoing import Outgoing
from .._bytes.timed import within
from .._errors import stream_error
from .._trio import send_detector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from typing_extensions import Buffer


@enable_ki_protection
async def send_all_vectored(
    stream: trio.abc.SendStream, buffers: Iterable[Buffer], *, timeout: float | None = None
) -> None:
    """Sends buffers in order, without joining them, on any trio.abc.SendStream.

    On a stream of this package this is one operation, and on a trio.SocketStream one sendmsg (more
    if the socket takes only a part). A stream's own `send_all_vectored(buffers, *, timeout=None)`
    is called if it has one, and a trio.StapledStream passes the list on. A trio.SSLStream encrypts
    the buffers one after another, each into one or more records; with TLS 1.3 over a stream of this
    package, the records go out as one operation (256 KiB at a time). A record costs about 20 us and
    22 bytes, so join buffers of 1 KiB or less yourself. Any other stream, and a subclass of ours
    that overrides send_all, gets the buffers one after another.

    Args:
        stream: the stream to send on.
        buffers: C-contiguous buffers of any item size. Empty ones are skipped, and there is no
            limit on their number. They are borrowed until the call returns; do not change them
            meanwhile.
        timeout: seconds for the whole call; None: the stream's default, if it has one; math.inf: no
            limit.

    Raises:
        trio.TooSlowError: the time was up. `stream.bytes_sent`, if the stream has it, says how much
            was sent.
        trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError: as in the
            stream's send_all.
        TypeError: something is not a buffer, or `buffers` itself is one. Nothing was sent.

    Cancellation: as in the stream's send_all; some of the data may have been sent.
    """
    if not isinstance(buffers, (list, tuple)):
        buffers = listed(buffers)
    target = sending_end(stream)
    method = abilities(target).lists_by
    if method is not None:
        await getattr(target, method)(buffers, timeout=timeout)
    else:
        with within(timeout):
            await _send(target, buffers)


def send_encoded(
    stream: trio.abc.SendStream, data: bytes | list[Any], timeout: float | None
) -> Awaitable[None]:
    """Sends what `encode_frame` returned; not a coroutine itself, since frames are many."""
    sender = list_sender(stream)
    if sender is not None:
        sending: Awaitable[None] = sender.send_all(data, timeout=timeout)
        return sending
    if isinstance(data, bytes):
        return send_one(stream, data, timeout)
    return send_all_vectored(stream, data, timeout=timeout)


async def send_one(stream: trio.abc.SendStream, data: bytes, timeout: float | None) -> None:
    """Calls stream.send_all(data) with the same rule of timeouts."""
    target = sending_end(stream)
    if abilities(target).times_sends:
        await target.send_all(data, timeout=timeout)
    else:
        with within(timeout):
            await target.send_all(data)


def bytes_of_last_send(stream: trio.abc.SendStream, *, one: bool = False) -> int | None:
    """How many bytes the last send_all_vectored sent; `one`: the last send_one.

    None: the stream does not say, or it got the list in several calls.
    """
    able = abilities(stream)
    # A `send_all_vectored` that is somebody else's may be all that somebody else's `bytes_sent`
    # counts.
    if not able.counts if one else able.lists_by is None:
        return None
    count: int | None = getattr(sending_end(stream), "bytes_sent", None)
    return count


def counting(stream: Any) -> Any:
    """Wraps a trio.SocketStream in one that counts what it sends; returns any other stream
    itself."""
    # Not isinstance: our streams are registered as trio's.
    return TrioTransport(stream) if type(stream) is trio.SocketStream else stream


def listed(buffers: Iterable[Buffer]) -> list[Buffer] | tuple[Buffer, ...]:
    """The buffers as a list or tuple; if they are an iterator, it is consumed once, here."""
    if isinstance(buffers, (list, tuple)):
        return buffers
    if isinstance(buffers, (bytes, bytearray, memoryview, str)):
        raise TypeError(
            f"send_all_vectored takes a list of buffers, not one {type(buffers).__name__}: "
            "use send_all for one"
        )
    return list(buffers)


async def _send(stream: trio.abc.SendStream, buffers: list[Buffer] | tuple[Buffer, ...]) -> None:
    if type(stream) is trio.SocketStream:
        await TrioTransport(stream).send_all(buffers)
        return
    with Outgoing(buffers) as out:
        transport = await _corked(stream) if out.count > 1 else None
        try:
            if out.done:
                await stream.send_all(b"")
            while not out.done:
                cork = None if transport is None else cork_of(transport)
                if out.count == 1 and cork is not None:
                    cork.task = None
                part = out.first()
                await stream.send_all(part)
                out.advance(len(part))
        finally:
            if transport is not None:
                uncork(transport)


async def _corked(stream: trio.abc.SendStream) -> Any:
    """Corks the stream of ours that a TLS stream sends on, if there is one, and returns it."""
    if not isinstance(stream, trio.SSLStream):
        return None
    transport = sending_end(stream.transport_stream)
    if not abilities(transport).native_sends:
        return None
    try:
        version = stream.version()
    except trio.NeedHandshakeError:
        await stream.do_handshake()
        version = stream.version()
    # Before TLS 1.3 the peer can ask for a new handshake, in which a write waits for an answer to
    # what was written before.
    if version != "TLSv1.3" or cork_of(transport) is not None:
        return None
    put_cork(transport, Cork())
    return transport


class TrioTransport(trio.abc.HalfCloseableStream):
    """A trio.SocketStream that sends lists and counts what it sent."""

    _abilities = Abilities(counts=True, keeps_sends=True)

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.socket = stream.socket
        self.bytes_sent = 0
        # trio's own, so that it also stops another task's send_all on the trio stream.
        self._detector = send_detector(stream)

    @property
    def _sending(self) -> bool:
        return bool(self._detector._held)

    @_sending.setter
    def _sending(self, held: bool) -> None:
        if held:
            self._detector.__enter__()
        else:
            self._detector.__exit__(None, None, None)

    def _begin_send(self) -> None:
        """For a loop that holds the direction between its calls, as in SendSide."""
        self._detector.__enter__()
        self.bytes_sent = 0

    async def send_all(self, data: Buffer | Sequence[Buffer]) -> None:
        """trio.SocketStream.send_all, for one buffer or a sequence of them.

        Cancellation: `bytes_sent` says how much was sent.
        """
        with Outgoing(data) as out:
            try:
                with self._detector:
                    if self.socket.did_shutdown_SHUT_WR:
                        raise trio.ClosedResourceError("can't send data after sending EOF")
                    self.bytes_sent = 0
                    await self._send_outgoing(out)
            except OSError as exc:
                raise stream_error(exc.errno or 0) from exc

    async def send_all_vectored(
        self, buffers: Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        with within(timeout):
            await self.send_all(buffers)

    async def _send_outgoing(self, out: Outgoing) -> None:
        if out.done:
            if self.socket.fileno() == -1:
                raise trio.ClosedResourceError("this stream was already closed")
            await trio.lowlevel.checkpoint()
        while not out.done:
            if out.vectored and hasattr(self.socket, "sendmsg"):
                sent = await self.socket.sendmsg(out.cut())
            else:
                sent = await self.socket.send(out.first())
            self.bytes_sent += sent
            out.advance(sent)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()
