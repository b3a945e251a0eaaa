"""Streams that override send_all and receive_some to make bytes upper case, which shows what
bypasses them.

Rules: their methods take the arguments of trio's, and no others.
"""

from __future__ import annotations

from typing import Any

import trio

import trio_uring


class Shouting(trio_uring.SocketStream):
    """A subclass that overrides both."""

    async def send_all(self, data: Any) -> None:  # type: ignore[override]
        await super().send_all(bytes(data).upper())

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # type: ignore[override]
        return (await super().receive_some(max_bytes)).upper()


class Passing(trio.abc.HalfCloseableStream):
    """A wrapper that passes on whatever attribute it does not know."""

    def __init__(self, within: trio_uring.SocketStream) -> None:
        self.within = within

    def __getattr__(self, name: str) -> Any:
        return getattr(self.within, name)

    async def send_all(self, data: Any) -> None:
        await self.within.send_all(bytes(data).upper())

    async def wait_send_all_might_not_block(self) -> None:
        await self.within.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return (await self.within.receive_some(max_bytes)).upper()

    async def send_eof(self) -> None:
        await self.within.send_eof()

    async def aclose(self) -> None:
        await self.within.aclose()


KINDS: dict[str, Any] = {
    "subclass": Shouting,
    "passing": lambda sock: Passing(trio_uring.SocketStream(sock)),
    "metered subclass": lambda sock: trio_uring.MeteredStream(Shouting(sock)),
    "metered passing": lambda sock: trio_uring.MeteredStream(
        Passing(trio_uring.SocketStream(sock))
    ),
    "stapled": lambda sock: trio.StapledStream(*[Shouting(sock)] * 2),
}
