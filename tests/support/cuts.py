"""Calls that are interrupted at randomly drawn moments, for the property tests.

Rules of this file: an interruption comes after a number of passes, or from inside the peer right
after it moved bytes, and never depends on a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import strategies as st

from .streams import closing, passes, pattern

if TYPE_CHECKING:
    from collections.abc import Callable

cuts = st.one_of(
    st.just(("now", 0)),
    st.just(("timeout", 0)),
    st.tuples(st.just("passes"), st.integers(0, 40)),
    st.tuples(st.just("peer"), st.integers(1, 6)),
)


@dataclass
class Cutter:
    """Cuts one call short: by itself at once, after some passes, or when the peer has moved bytes a
    number of times."""

    moves_left: int = 0
    scope: trio.CancelScope | None = field(default=None)

    def peer_moved(self) -> None:
        if self.scope is not None and self.moves_left:
            self.moves_left -= 1
            if not self.moves_left:
                self.scope.cancel()

    async def run(self, cut: tuple[str, int], call: Callable[..., Any]) -> Any:
        """The call's result, or None if it was cut short."""
        how, count = cut
        if how == "timeout":
            try:
                return await call(timeout=0)
            except trio.TooSlowError:
                return None
        result = None
        async with trio.open_nursery() as nursery:
            if how == "passes":
                nursery.start_soon(self._cancel_after, count, nursery.cancel_scope)
            elif how == "now":
                nursery.cancel_scope.cancel()
            else:
                self.scope, self.moves_left = nursery.cancel_scope, count
            result = await call()
            nursery.cancel_scope.cancel()
        self.scope = None
        return result

    async def _cancel_after(self, count: int, scope: trio.CancelScope) -> None:
        await passes(count)
        scope.cancel()


async def write_in_pieces(
    peer: trio.abc.SendStream, pieces: list[tuple[int, int]], cutter: Cutter
) -> None:
    """For each piece: wait some passes, send so many bytes, tell the cutter."""
    start = 0
    for wait, size in pieces:
        await passes(wait)
        await peer.send_all(pattern(size, start))
        cutter.peer_moved()
        start += size
    await peer.aclose()


async def check_cut_receives(
    receive: Any, stream: Any, peer: Any, pieces: list[tuple[int, int]], calls: list[Any]
) -> None:
    """What `peer` writes in pieces comes out of `stream` whole and in order, however the receives
    are cut short."""
    cutter, got = Cutter(), b""
    async with closing(stream, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_in_pieces, peer, pieces, cutter)
            got = await receive(stream, calls, cutter)
    whole = pattern(sum(size for _, size in pieces))
    assert len(got) == len(whole)
    assert got == whole
