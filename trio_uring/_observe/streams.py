"""Streams that report to an observer: to counters, or to an audit.

Rules of this file: those of _observe/observer.py. send_all and receive_some create no closure and
no second coroutine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.abilities import Abilities, Wrapper, abilities, put_back, receiving_end, sending_end
from .._bytes.outgoing import buffer_list
from .._bytes.timed import in_time, receive_default
from .._bytes.views import byte_view
from .._messages.buffered import BufferedReceiveStream
from .._messages.vectored import bytes_of_last_send, counting, listed, send_all_vectored
from .._network.network import Address, NetworkStream
from ..audit import Audit
from ..metrics import Metrics
from .observer import ObservedResource, Observer, outcome_of, told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from typing_extensions import Buffer

    from ..metrics import Direction

_T = TypeVar("_T")


if TYPE_CHECKING:

    def _if_wrapped_has(method: _T) -> _T:
        return method

else:

    class _if_wrapped_has:
        """A method that exists only if the wrapped stream has it, so that hasattr() tells the
        truth.

        For methods that receive, what counts is the stream that a trio.StapledStream receives from.
        """

        def __init__(self, method):
            self._method = method
            self.__doc__ = method.__doc__

        def __get__(self, instance, owner=None):
            if instance is None:
                return self._method
            name = self._method.__name__
            # If it has none, this raises its own AttributeError.
            getattr(instance.wrapped if name == "send_eof" else instance._source, name)
            return self._method.__get__(instance, owner)


class ObservedStream(ObservedResource, Wrapper, NetworkStream):
    """A stream that reports to `observer`. See MeteredStream."""

    _abilities = Abilities(times_sends=True, counts=True, times_receives=True, takes_back=True)

    def __init__(self, stream: trio.abc.Stream, observer: Observer) -> None:
        super().__init__(stream, observer, getattr(stream, "remote_address", None))
        # The ends themselves: those of a trio.StapledStream may be ours, with all that ours can do.
        self._sink = counting(sending_end(stream))
        self._source = receiving_end(stream)
        self._times_sends = abilities(self._sink).times_sends
        self._times_receives = abilities(self._source).times_receives

    @property
    def local_address(self) -> Address:
        return self.wrapped.local_address  # type: ignore[no-any-return]

    @property
    def remote_address(self) -> Address:
        return self.wrapped.remote_address  # type: ignore[no-any-return]

    @property
    def bytes_sent(self) -> int:
        count = bytes_of_last_send(self._sink)
        if count is None:
            raise AttributeError(f"{type(self._sink).__name__} does not know its bytes_sent")
        return count

    @bytes_sent.setter
    def bytes_sent(self, count: int) -> None:  # for a copy, which counts as one call
        self._sink.bytes_sent = count

    @property
    def send_timeout(self) -> float | None:
        """Seconds; the value of the wrapped stream."""
        return self._sink.send_timeout  # type: ignore[no-any-return]

    @send_timeout.setter
    def send_timeout(self, seconds: float | None) -> None:  # pyright: ignore
        _set_default(self._sink, "send_timeout", seconds, self._times_sends)

    @property
    def receive_timeout(self) -> float | None:
        """Seconds; the value of the wrapped stream."""
        return receive_default(self._source)

    @receive_timeout.setter
    def receive_timeout(self, seconds: float | None) -> None:  # pyright: ignore
        _set_default(self._source, "receive_timeout", seconds, self._times_receives)

    # -- sending

    @enable_ki_protection
    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        if isinstance(data, (list, tuple)):
            await self.send_all_vectored(data, timeout=timeout)
            return
        observer, address = self._observer, self._address
        buffers = (data,) if type(data) is bytes else _buffers_of(data)
        observer.attempt("send", address, buffers)
        try:
            if timeout is None:
                await self._sink.send_all(data)
            else:
                await in_time(self._times_sends, timeout, self._sink.send_all, data)
        except BaseException as exc:
            observer.failure("send", address, exc, outcome_of(exc))
            raise
        observer.success("send", address, buffers)

    @enable_ki_protection
    async def send_all_vectored(
        self, buffers: Iterable[Buffer], *, timeout: float | None = None
    ) -> None:
        observer, address = self._observer, self._address
        # An iterator is consumed once, here, and later changes to a list do not affect the count.
        buffers = tuple(listed(buffers))
        observer.attempt("send", address, buffers)
        try:
            await send_all_vectored(self._sink, buffers, timeout=timeout)
        except BaseException as exc:
            observer.failure("send", address, exc, outcome_of(exc))
            raise
        observer.success("send", address, buffers)

    async def wait_send_all_might_not_block(self) -> None:
        await self.wrapped.wait_send_all_might_not_block()

    @_if_wrapped_has
    async def send_eof(self) -> None:
        await self.wrapped.send_eof()

    # -- receiving

    @enable_ki_protection
    async def receive_some(
        self, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> bytes:
        observer, address = self._observer, self._address
        observer.attempt("receive", address)
        try:
            if timeout is None:
                data: bytes = await self._source.receive_some(max_bytes)
            else:
                data = await in_time(
                    self._times_receives, timeout, self._source.receive_some, max_bytes
                )
        except BaseException as exc:
            observer.failure("receive", address, exc, outcome_of(exc))
            raise
        observer.success("receive", address, (data,))
        return data

    @enable_ki_protection
    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        source = self._source
        # The wrapper's class always has this method, whatever the source can do.
        if not abilities(source).receives_into:
            source = BufferedReceiveStream(source, 0)
        count: int = await self._receive(source.receive_into, buffer, timeout=timeout)
        with byte_view(memoryview(buffer))[:count] as part:
            self._observer.success("receive", self._address, (part,))
        return count

    @_if_wrapped_has
    @enable_ki_protection
    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        data: bytes = await self._receive(self._source.receive_exactly, count, timeout=timeout)
        self._observer.success("receive", self._address, (data,))
        return data

    @_if_wrapped_has
    @enable_ki_protection
    async def receive_until(
        self, delimiter: bytes, max_bytes: int, *, timeout: float | None = None
    ) -> bytes:
        data: bytes = await self._receive(
            self._source.receive_until, delimiter, max_bytes, timeout=timeout
        )
        self._observer.success("receive", self._address, (data,))
        return data

    async def _receive(
        self, method: Callable[..., Awaitable[Any]], *args: object, timeout: float | None
    ) -> Any:
        return await told(
            self._observer,
            "receive",
            self._address,
            in_time,
            self._times_receives,
            timeout,
            method,
            *args,
        )

    @_if_wrapped_has
    def peek(self, max_bytes: int | None = None) -> bytes:
        return self._source.peek(max_bytes)  # type: ignore[no-any-return]

    def _put_back(self, chunks: list[bytes]) -> None:
        """Called only if the source takes bytes back. They count again when they are received
        again."""
        put_back(self._source, chunks)


class MeteredStream(ObservedStream):
    """Counts what is sent and received on any trio.abc.Stream.

    It has the wrapped stream's methods and attributes, with its errors and cancellation. Lists,
    `timeout=` and `receive_into` work on any stream; other methods exist only if the wrapped stream
    has them (otherwise AttributeError). Bytes count when the call that moved them returns; `peek`
    and a second `aclose` count nothing. What an interrupted `copy_stream` or `receive_frame` puts
    back counts again when it is received again.

    Args:
        stream: the stream to wrap, owned from now on; also the attribute `wrapped`.
        metrics: where to count, also an attribute; None: a new one. The stream does not count as a
            connection, since no network made it.
    """

    def __init__(self, stream: trio.abc.Stream, metrics: Metrics | None = None) -> None:
        self.metrics: Metrics = Metrics() if metrics is None else metrics
        self._direction: Direction | None = None
        super().__init__(stream, self.metrics)

    @enable_ki_protection
    async def aclose(self) -> None:
        direction, self._direction = self._direction, None
        try:
            await super().aclose()
        finally:  # it is closed even if this was cancelled
            if direction is not None:
                self.metrics.connection_closed(direction)


def metered_connection(
    stream: NetworkStream, metrics: Metrics, direction: Direction
) -> MeteredStream:
    """The stream of a connection that `metrics` counts as open until it is closed."""
    metered = MeteredStream(stream, metrics)
    metered._direction = direction
    return metered


class AuditedStream(ObservedStream):
    """Hashes what is sent and received on any trio.abc.Stream; otherwise like MeteredStream.

    Args:
        stream: the stream to wrap, owned from now on; also the attribute `wrapped`.
        audit: where to hash, also an attribute; None: a new one.
    """

    def __init__(self, stream: trio.abc.Stream, audit: Audit | None = None) -> None:
        self.audit: Audit = Audit() if audit is None else audit
        super().__init__(stream, self.audit)


def _set_default(stream: Any, name: str, seconds: float | None, has_it: bool) -> None:
    """Sets a timeout, but only one that the stream has: another would silently do nothing."""
    if not has_it:
        raise AttributeError(f"{type(stream).__name__} has no {name}")
    setattr(stream, name, seconds)


def _buffers_of(data: Any) -> tuple[Any, ...]:
    """What observers see of send_all's argument: its buffers, or an unsuitable object as it is,
    which the stream will refuse."""
    try:
        return tuple(buffer_list(data))
    except TypeError:
        return (data,)
