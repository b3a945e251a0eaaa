"""The PROXY protocol: which client a load balancer speaks for.

The balancer sends a header in front of a connection's bytes (version 1 is a line of text, version 2
is binary). The proxy-protocol package parses it.

The header is received in the task of the connection, so that a balancer that is slow with it
keeps nobody waiting: by `serve_listeners` and its siblings before they call the handler, with other
servers in the first call that sends or receives. From then on the stream is of a class with nothing
of its own in the way of bytes.

Rules of this file: the header is received to its last byte, and no further, so that what follows
(TLS, for instance) is where it was. The parser is only given what is a whole header, or the
beginning of one: it takes bytes that follow for a part of it. A peer that is not trusted is never
believed.
"""

from __future__ import annotations

import importlib
import ipaddress
import logging
import math
import os
import struct
from typing import TYPE_CHECKING, Any, Literal

import trio

from .._bytes.abilities import put_back
from .._bytes.timed import check_timeout
from .._descriptors.direction import AF_UNIX
from .._errors import IncompleteReadError
from .._streams.listeners import SocketListener
from .._streams.streams import SocketStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Buffer

_log = logging.getLogger("trio_uring")

LINE_MAX = 107  # bytes of a header of version 1, with its line end
HEADER_MAX = 4096  # bytes of a header of version 2 that is accepted; usual are 28 to 200
_GONE = ("", 0)  # the address of a peer that has reset its connection already
UNIX = "unix:"  # in `trusted`: whoever may connect to a Unix socket

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ProxyStream(SocketStream):
    """A connection that a ProxyListener has accepted: a SocketStream that knows its client.

    `socket` is the connection with the proxy.
    """

    _addresses: tuple[Any, Any] | None = None
    _extra: Mapping[int, bytes] | None = None
    _waits: _Header | None = None

    @property
    def remote_address(self) -> tuple[str, int] | str:
        """The client's address: host and port, or the path of a Unix socket.

        It is the peer's own if it speaks for itself: the header says so (LOCAL, UNKNOWN), or it may
        connect without one.

        Raises:
            RuntimeError: the header was not received yet: see `receive_header`.
        """
        return self._known()[0]  # type: ignore[no-any-return]

    @property
    def local_address(self) -> tuple[str, int] | str:
        """The address to which the client has connected, in the form of `remote_address`."""
        return self._known()[1]  # type: ignore[no-any-return]

    @property
    def proxy_extra(self) -> Mapping[int, bytes]:
        """The extensions of a header of version 2, by type (such as 0x02, the host name of TLS)."""
        self._known()
        return self._extra or {}

    def _become_usual(self) -> None:
        pass

    def _known(self) -> tuple[Any, Any]:
        if self._waits is not None:
            raise RuntimeError("the PROXY header was not received yet: await receive_header()")
        return self._addresses or _own_addresses(self)

    async def receive_header(self) -> None:
        """Receives the PROXY header, if that was not done before.

        Servers of this package have done it before they call the handler. With others, the first
        call that sends or receives does it.

        Raises:
            trio.BrokenResourceError: the header is malformed, too long, or did not come in time,
                which is logged, and the connection is closed; or the connection is broken.
            trio.ClosedResourceError: this stream was closed.

        Cancellation: no byte is lost; the next call goes on.
        """
        waits = self._waits
        if waits is None:
            await trio.lowlevel.checkpoint()
            return
        async with waits.lock:
            if self._waits is None:
                return
            try:
                await waits.receive(self)
            except (ValueError, struct.error, IncompleteReadError, trio.TooSlowError) as exc:
                message = f"no valid PROXY header from {_peer(self)}: {_why(exc)}"
                self._close()
                _log.log(waits.level, "refused a connection: %s", message)
                raise trio.BrokenResourceError(message) from exc
            self._addresses, self._extra = waits.addresses or _own_addresses(self), waits.extra
            self._waits = None
            self._become_usual()


class _Unread(ProxyStream):
    """A ProxyStream whose header was not received yet: what sends or receives does it first."""

    def wait_for(self, header: _Header) -> None:
        self._waits = header

    def pass_by(self) -> None:
        """It has no header."""
        self._addresses = _own_addresses(self)
        self._become_usual()

    def _become_usual(self) -> None:
        self.__class__ = ProxyStream  # type: ignore[assignment]

    async def send_all(
        self, data: Buffer | Sequence[Buffer], *, timeout: float | None = None
    ) -> None:
        await self.receive_header()
        await ProxyStream.send_all(self, data, timeout=timeout)

    async def wait_send_all_might_not_block(self) -> None:
        await self.receive_header()
        await ProxyStream.wait_send_all_might_not_block(self)

    async def send_eof(self) -> None:
        await self.receive_header()
        await ProxyStream.send_eof(self)

    async def receive_some(
        self, max_bytes: int | None = None, *, timeout: float | None = None
    ) -> bytes:
        await self.receive_header()
        return await ProxyStream.receive_some(self, max_bytes, timeout=timeout)

    async def receive_into(self, buffer: Buffer, *, timeout: float | None = None) -> int:
        await self.receive_header()
        return await ProxyStream.receive_into(self, buffer, timeout=timeout)

    async def receive_exactly(self, count: int, *, timeout: float | None = None) -> bytes:
        await self.receive_header()
        return await ProxyStream.receive_exactly(self, count, timeout=timeout)

    def split(self) -> Any:
        raise RuntimeError("receive the PROXY header first: await receive_header()")


class _Header:
    """A PROXY header that is being received.

    Attributes:
        lock: held by the call that receives.
        addresses: of the client, and what it has connected to; None: the peer speaks for itself.
        extra: the extensions.
        level: at which a failure is logged.
    """

    def __init__(self, parser: Any, timeout: float) -> None:
        self._parser = parser
        self._timeout, self._deadline = timeout, math.inf
        self._data = b""
        self._want: int | None = 0  # bytes that the parser wants; None: to the end of a line
        self.lock = trio.Lock()
        self.addresses: tuple[Any, Any] | None = None
        self.extra: Mapping[int, bytes] = {}

    @property
    def level(self) -> int:
        # A balancer that only looks whether somebody listens sends nothing.
        return logging.WARNING if self._data else logging.DEBUG

    async def receive(self, stream: SocketStream) -> None:
        """Receives the header, to its last byte.

        Raises:
            ValueError, struct.error: it is malformed or too long.
            IncompleteReadError: the stream ended within it.
            trio.TooSlowError: the time was up.
            trio.BrokenResourceError: the connection is broken.

        Cancellation: what came is kept here.
        """
        if self._deadline == math.inf:  # not by a call that was cancelled
            self._deadline = trio.current_time() + self._timeout
        with trio.fail_at(self._deadline):
            while (result := self._parse()) is None:
                await self._more(stream)
        if result.proxied and result.source is not None:
            self.addresses = _address(result.peername), _address(result.sockname)
        # By the specification, nothing in a LOCAL header means anything: what the parser takes for
        # extensions may be addresses.
        if result.proxied:
            self.extra = dict(result.tlv)

    def _parse(self) -> Any:
        """What the header says; None: there is more of it."""
        try:
            return self._parser.unpack(self._data)
        except _parts().ProxyProtocolIncompleteError as exc:
            # Of a line, the end is not known before it is there: what is too much is put back.
            self._want = exc.want_read.want_bytes
            return None

    async def _more(self, stream: SocketStream) -> None:
        had, want = len(self._data), self._want
        most = LINE_MAX - had if want is None else want
        if most < 1 or had + most > HEADER_MAX:
            raise ValueError("it is too long")
        # Not the stream's own method, which would wait for the header.
        chunk = await SocketStream.receive_some(stream, most, timeout=math.inf)
        if not chunk:
            raise IncompleteReadError(self._data)
        end = chunk.find(b"\n") + 1 if want is None else 0
        if end and end < len(chunk):
            put_back(stream, [chunk[end:]])
            chunk = chunk[:end]
        self._data += chunk


def _parts() -> Any:
    """The parsing package."""
    try:
        return importlib.import_module("proxyprotocol")
    except ImportError as exc:
        raise ImportError(
            "ProxyListener needs the proxy-protocol package: pip install proxy-protocol"
        ) from exc


class ProxyListener(trio.abc.Listener[ProxyStream]):
    """Accepts connections from proxies and load balancers that send a PROXY header (version 1 or
    2).

    It needs the proxy-protocol package, which the extra `proxy` installs. TLS goes around it:
    ``trio.SSLListener(ProxyListener(...), context)``.

    Args:
        listener: a SocketListener, owned from now on.
        trusted: whose headers are believed: networks such as "10.0.0.0/8" or "::1", and "unix:" for
            whoever can connect to a Unix socket. Nobody else's are.
        timeout: seconds for a header to come, from the moment in which it is waited for.
        untrusted: what happens to connections of others: "refuse" closes them; "pass" serves them
            as they are, without a header, for instance so that health checks get through.

    Raises:
        ImportError: the proxy-protocol package is missing.
        TypeError, ValueError: an argument is none of these.
    """

    def __init__(
        self,
        listener: SocketListener,
        *,
        trusted: Iterable[str | _Network],
        timeout: float = 5.0,
        untrusted: Literal["refuse", "pass"] = "refuse",
    ) -> None:
        _parts()
        self._parser = importlib.import_module("proxyprotocol.detect").ProxyProtocolDetect()
        if not isinstance(listener, SocketListener):
            raise TypeError(
                f"ProxyListener needs a SocketListener of this package, not {listener!r}; TLS goes "
                "around it: trio.SSLListener(ProxyListener(...), context)"
            )
        if isinstance(trusted, str):
            raise TypeError(f"trusted must be a list of networks, not {trusted!r}")
        check_timeout(timeout)
        if untrusted not in ("refuse", "pass"):
            raise ValueError(f"untrusted must be 'refuse' or 'pass', not {untrusted!r}")
        trusted = list(trusted)
        self._networks = [_network(each) for each in trusted if each != UNIX]
        self._trusts_unix = UNIX in trusted
        if not trusted:
            raise ValueError("trusted must name whose headers are believed")
        self._listener = listener
        self._timeout = timeout
        self._passes = untrusted == "pass"
        self._level = logging.WARNING

    @property
    def socket(self) -> trio.socket.SocketType:
        """The listening socket."""
        return self._listener.socket

    async def accept(self) -> ProxyStream:
        """Waits for a connection, and returns it before its header has come.

        Raises:
            Others: the same as SocketListener.accept.

        Cancellation: as in SocketListener.accept.
        """
        while True:
            stream: Any = await self._listener.accept()
            trusted = self._trusts(stream)
            if trusted or self._passes:
                stream.__class__ = _Unread
                unread: Any = stream
                if trusted:
                    unread.wait_for(_Header(self._parser, self._timeout))
                else:
                    unread.pass_by()
                return unread  # type: ignore[no-any-return]
            self._log_untrusted(_peer(stream))
            await trio.aclose_forcefully(stream)

    def _log_untrusted(self, peer: Any) -> None:
        if peer != _GONE:
            # Once, because whoever configures it should see it, and others could fill the log.
            _log.log(self._level, "refused a connection from %s: not trusted", peer)
            self._level = logging.DEBUG

    def _trusts(self, stream: SocketStream) -> bool:
        if stream.socket.family == AF_UNIX:
            return self._trusts_unix
        host = _peer(stream)[0].partition("%")[0]
        if not host:
            return False
        address = ipaddress.ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)

    async def aclose(self) -> None:
        """Closes the listener.

        Cancellation: it is closed even if the scope is already cancelled.
        """
        await self._listener.aclose()


def _network(text: str | _Network) -> _Network:
    """As the peers' addresses are: IPv4, also if it is written as IPv6 ("::ffff:10.0.0.0/104")."""
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - 96))


def _own_addresses(stream: SocketStream) -> tuple[Any, Any]:
    return _peer(stream), _address(stream.socket.getsockname())


def _peer(stream: SocketStream) -> Any:
    """The address of the peer."""
    try:
        return _address(stream.socket.getpeername())
    except OSError:
        return "" if stream.socket.family == AF_UNIX else _GONE


def _address(name: Any) -> Any:
    if isinstance(name, bytes):  # an abstract name of a Unix socket
        return os.fsdecode(name)
    return tuple(name[:2]) if isinstance(name, tuple) else name


def _why(exc: Exception) -> str:
    if isinstance(exc, trio.TooSlowError):
        return "it did not come in time"
    if isinstance(exc, IncompleteReadError):
        return "the connection ended within it" if exc.partial else "the connection ended"
    return str(exc) or type(exc).__name__
