"""What the end-to-end tests share: the enabled run, proof that nothing bypassed the ring,
certificates, data.

Rules: the libraries are used as they come, through their documented interfaces. Each test runs in
`enabled_run`, which fails if an I/O call was made on a trio socket that is not ours, or if ours did
nothing, so that no test has to check that again.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import ssl
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import trio
from trio._socket import _SocketType

import trio_uring

from .streams import checked_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    import trustme

MIB = 2**20
LARGE = 10 * MIB
# For what takes well under one, on a machine that is busy: a test that waits for something that
# never comes fails by name.
SECONDS_MAX = 100.0


@contextlib.contextmanager
def stock_calls() -> Iterator[list[str]]:
    """Meanwhile, notes every I/O call of a trio socket that is done by trio itself, and counts
    those of ours."""
    helper, connect = _SocketType._nonblocking_helper, _SocketType.connect
    calls: list[str] = []

    async def noted_helper(self: Any, wait: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(fn.__name__)
        return await helper(self, wait, fn, *args, **kwargs)

    async def noted_connect(self: Any, address: Any) -> None:
        calls.append("connect")
        await connect(self, address)

    _SocketType._nonblocking_helper = noted_helper  # type: ignore[method-assign]
    _SocketType.connect = noted_connect  # type: ignore[method-assign]
    try:
        with _our_calls():
            yield calls
    finally:
        _SocketType._nonblocking_helper = helper  # type: ignore[method-assign]
        _SocketType.connect = connect  # type: ignore[method-assign]


_made: Counter[str] = Counter()


@contextlib.contextmanager
def _our_calls() -> Iterator[None]:
    """Meanwhile, counts in `_made` what sockets of ours do, by method."""
    stock = {
        name: vars(trio_uring.UringSocket)[name]
        for name in ("accept", "connect", "_nonblocking_helper")
    }

    def counted(name: str) -> Any:
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = await stock[name](self, *args, **kwargs)
            _made[name] += 1
            return result

        return call

    _made.clear()
    try:
        for name in stock:
            setattr(trio_uring.UringSocket, name, counted(name))
        yield
    finally:
        for name, method in stock.items():
            setattr(trio_uring.UringSocket, name, method)


def accepts() -> int:
    """How many connections sockets of ours have accepted in these stock_calls."""
    return _made["accept"]


def connects() -> int:
    """How many they have made."""
    return _made["connect"]


def completed(*opcodes: str) -> int:
    """How many operations of this run succeeded: of these opcodes, or all."""
    counts = trio_uring.current_statistics().operations
    return sum(
        count.completed for opcode, count in counts.items() if not opcodes or opcode in opcodes
    )


def check(calls: list[str]) -> None:
    # Without a ring a socket's calls are trio's own.
    if trio_uring.backend_info().backend == "uring":
        assert not calls, f"calls that did not go to the ring: {sorted(set(calls))}"


def enabled_run(
    main: Callable[..., Awaitable[Any]], *args: Any, instruments: Any = (), **kwargs: Any
) -> Any:
    """checked_run of an enabled run, in which all I/O of trio sockets is ours, and there is
    some."""
    with stock_calls() as calls:
        result = checked_run(
            _proven, main, *args, instruments=[trio_uring.Enable(), *instruments], **kwargs
        )
    check(calls)
    return result


def enabled_anyio_run(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """As enabled_run, by anyio.run and its `backend_options`."""
    options = {"instruments": [trio_uring.Enable()]}
    with stock_calls() as calls:
        result = checked_run(
            _proven, main, *args, run=anyio.run, backend="trio", backend_options=options
        )
    check(calls)
    return result


async def _proven(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    with trio.fail_after(SECONDS_MAX):
        result = await main(*args)
    assert completed() or _made, "no socket of ours did anything"
    return result


def http_client(url: str = "", **options: Any) -> httpx.AsyncClient:
    """httpx's client, which waits for a server that gets no processor for longer than the 5 seconds
    that httpx has, and keeps its connections for longer."""
    limits = httpx.Limits(
        max_connections=100, max_keepalive_connections=20, keepalive_expiry=SECONDS_MAX
    )
    return httpx.AsyncClient(**{"base_url": url, "timeout": None, "limits": limits, **options})


# -- TLS


class Certificates:
    """A certificate authority, and the contexts of a server that it signed for and of a client that
    trusts it."""

    def __init__(self, authority: trustme.CA, folder: Path) -> None:
        self._authority = authority
        self._issued = authority.issue_cert("127.0.0.1", "localhost")
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.chain.write_bytes(b"".join(blob.bytes() for blob in self._issued.cert_chain_pems))
        self.key.write_bytes(self._issued.private_key_pem.bytes())

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._issued.configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


# -- data


_DATA = random.Random(0).randbytes(LARGE)


def payload(count: int) -> bytes:
    """`count` bytes, LARGE at most; a run of them that is lost, doubled or moved changes their
    digest."""
    return _DATA[:count]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
