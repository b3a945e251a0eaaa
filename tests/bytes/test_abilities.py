"""The abilities of streams: of each class of ours, overriding subclasses, wrappers, and others'
streams.

Rules: no I/O. Classes are tested through objects that were never initialised, where that is enough.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

import trio_uring
from trio_uring._bytes.abilities import Abilities, abilities, receiving_end, sending_end
from trio_uring._messages.buffered import BufferedReceiveStream
from trio_uring._messages.vectored import TrioTransport
from trio_uring._network.network import BufferedNetworkStream, NetworkStream
from trio_uring._network.transport import SimulatedTransport

pytestmark = pytest.mark.no_ring

SENDS = Abilities(
    lists_by="send_all", times_sends=True, counts=True, native_sends=True, keeps_sends=True
)
RECEIVES = Abilities(
    times_receives=True,
    takes_back=True,
    receives_into=True,
    native_receives=True,
    keeps_receives=True,
)
BOTH = replace(
    SENDS,
    times_receives=True,
    takes_back=True,
    receives_into=True,
    native_receives=True,
    keeps_receives=True,
    sends_eof=True,
)
LISTS = Abilities(lists_by="send_all_vectored", counts=True, keeps_sends=True, sends_eof=True)
BUFFERED = Abilities(times_receives=True, takes_back=True, receives_into=True, keeps_receives=True)
NETWORK = Abilities(
    lists_by="send_all_vectored",
    times_sends=True,
    counts=True,
    times_receives=True,
    takes_back=True,
    receives_into=True,
    keeps_receives=True,
    sends_eof=True,
)


def blank(cls: type, **attributes: Any) -> Any:
    """An object of a class, without its __init__."""
    made = object.__new__(cls)
    vars(made).update(attributes)
    return made


def promising() -> type:
    """A NetworkStream of somebody else's: it has all that the abstract class asks for."""

    async def method(self: Any, *args: Any, **kwargs: Any) -> None: ...

    abstract = NetworkStream.__abstractmethods__
    return type("Theirs", (NetworkStream,), dict.fromkeys(abstract, method))


KINDS = {
    trio_uring.SocketStream: BOTH,
    trio_uring.SendStream: SENDS,
    trio_uring.ReceiveStream: RECEIVES,
    BufferedReceiveStream: BUFFERED,
    BufferedNetworkStream: NETWORK,
    TrioTransport: LISTS,
    SimulatedTransport: LISTS,
    promising(): replace(NETWORK, takes_back=False, keeps_receives=False),
    # of others
    trio.SocketStream: Abilities(sends_eof=True),
    trio.SSLStream: Abilities(),
    trio.testing.MemorySendStream: Abilities(),
    trio.testing.MemoryReceiveStream: Abilities(),
    object: Abilities(),
    int: Abilities(),
}


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_what_each_class_can(cls: type) -> None:
    made = blank(cls) if issubclass(cls, trio.abc.AsyncResource) else cls()
    assert abilities(made) == KINDS[cls]


def test_a_receive_whose_time_runs_already_is_given_no_limit() -> None:
    assert abilities(blank(trio_uring.SocketStream)).untimed == {"timeout": float("inf")}
    assert abilities(blank(trio.SocketStream)).untimed == {}


# -- subclasses


OF_SENDS = {
    "lists_by": None, "times_sends": False, "counts": False, "native_sends": False
}  # fmt: skip
OF_RECEIVES = {
    "times_receives": False, "takes_back": False, "receives_into": False, "native_receives": False
}  # fmt: skip
OURS = [cls for cls in KINDS if cls.__module__.startswith("trio_uring")]


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_an_override_ends_what_was_said_of_its_method(cls: Any) -> None:
    class Plain(cls):
        pass

    class Sends(cls):
        async def send_all(self, data: Any) -> None: ...

    class Receives(cls):
        async def receive_some(self, max_bytes: int | None = None) -> bytes: ...

    class Later(Sends):
        pass

    can = KINDS[cls]
    assert abilities(blank(Plain)) == can
    assert abilities(blank(Sends)) == abilities(blank(Later)) == replace(can, **OF_SENDS)  # type: ignore[arg-type]
    assert abilities(blank(Receives)) == replace(can, **OF_RECEIVES)  # type: ignore[arg-type]


def test_an_override_that_can_still_do_it_says_so() -> None:
    class Lists(trio_uring.SocketStream):
        _abilities = Abilities(lists_by="send_all", times_sends=True)

        async def send_all(self, data: Any, *, timeout: float | None = None) -> None: ...

    class Vectored(trio_uring.SocketStream):
        async def send_all(self, data: Any, *, timeout: float | None = None) -> None: ...

        async def send_all_vectored(
            self, buffers: Any, *, timeout: float | None = None
        ) -> None: ...

    assert abilities(blank(Lists)) == replace(BOTH, counts=False, native_sends=False)
    assert abilities(blank(Vectored)).lists_by == "send_all_vectored"
    assert not abilities(blank(Vectored)).times_sends


def test_what_the_abstract_class_promises_is_of_the_first_that_implements_it() -> None:
    class Second(promising()):  # type: ignore[misc]
        async def send_all(self, data: Any) -> None: ...

    can = abilities(blank(Second))
    assert not can.times_sends
    assert can.lists_by is None
    assert can.times_receives


def test_a_method_that_comes_first_in_the_order_of_bases_counts() -> None:
    class Foreign:
        async def send_all(self, data: Any) -> None: ...

    class Mixed(Foreign, trio_uring.SocketStream):
        pass

    class Behind(trio_uring.SocketStream, Foreign):  # type: ignore[misc]
        pass

    assert abilities(blank(Mixed)) == replace(BOTH, **OF_SENDS)  # type: ignore[arg-type]
    assert abilities(blank(Behind)) == BOTH


def test_a_subclass_of_somebody_elses_that_overrides_gets_no_list() -> None:
    class Base(trio.abc.SendStream):
        async def send_all(self, data: Any) -> None: ...

        async def send_all_vectored(
            self, buffers: Any, *, timeout: float | None = None
        ) -> None: ...

        async def wait_send_all_might_not_block(self) -> None: ...

        async def aclose(self) -> None: ...

    class Sub(Base):
        async def send_all(self, data: Any) -> None: ...

    assert abilities(Base()) == Abilities(lists_by="send_all_vectored")
    assert abilities(Sub()) == Abilities()


def test_a_method_that_is_replaced_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = blank(trio_uring.SocketStream)
    assert abilities(stream) == BOTH
    with monkeypatch.context() as patch:
        before = trio_uring.SocketStream.send_all

        @functools.wraps(before)
        async def traced(self: Any, *args: Any, **kwargs: Any) -> None: ...

        patch.setattr(trio_uring.SocketStream, "send_all", traced)
        assert abilities(stream) == replace(BOTH, **OF_SENDS)  # type: ignore[arg-type]
    assert abilities(stream) == BOTH


# -- what is within


class Passing(trio.abc.Stream):
    """It passes on whatever attribute it does not know."""

    def __init__(self, within: Any) -> None:
        self.within = within

    def __getattr__(self, name: str) -> Any:
        return getattr(self.within, name)

    async def send_all(self, data: Any) -> None: ...

    async def wait_send_all_might_not_block(self) -> None: ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return b""

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_what_passes_attributes_on_can_nothing(cls: type) -> None:
    within = blank(cls) if cls in OURS else trio_uring.BufferedReceiveStream
    assert abilities(Passing(within)) == Abilities()
    staple = trio.StapledStream(Passing(within), Passing(within))
    assert abilities(staple) == Abilities(sends_eof=True)


def test_an_attribute_of_the_object_says_nothing() -> None:
    stream = Passing(None)
    for name in ("_abilities", "send_all_vectored", "receive_into", "send_eof"):
        setattr(stream, name, BOTH)
    assert abilities(stream) == Abilities()


def test_a_staple_can_what_its_ends_can() -> None:
    send, receive = blank(trio_uring.SendStream), blank(BufferedReceiveStream)
    staple = trio.StapledStream(send, receive)
    deep = trio.StapledStream(trio.StapledStream(send, None), trio.StapledStream(None, receive))  # type: ignore[type-var]
    for stream in (staple, deep):
        assert abilities(stream) == replace(
            BUFFERED,
            lists_by="send_all",
            times_sends=True,
            counts=True,
            native_sends=True,
            keeps_sends=True,
            sends_eof=True,
        )
        assert (sending_end(stream), receiving_end(stream)) == (send, receive)


WRAPPERS = [trio_uring.MeteredStream, trio_uring.AuditedStream]
# A wrapper takes lists and timeouts for any stream, and memory to receive into.
WRAPS = Abilities(
    lists_by="send_all_vectored", times_sends=True, times_receives=True, receives_into=True
)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_can_what_is_within(wrap: Any) -> None:
    ours, trios = blank(trio_uring.SocketStream), blank(trio.SocketStream, socket=None)
    full = replace(WRAPS, counts=True, takes_back=True, sends_eof=True)
    assert abilities(wrap(ours)) == full
    assert abilities(wrap(wrap(ours))) == full
    assert abilities(wrap(Passing(ours))) == WRAPS
    halves = trio.StapledStream(blank(trio_uring.SendStream), blank(trio_uring.ReceiveStream))
    assert abilities(wrap(halves)) == full
    # it counts what it sends on trio's
    assert abilities(wrap(trios)) == replace(WRAPS, counts=True, sends_eof=True)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_subclass_of_a_wrapper_that_overrides(wrap: Any) -> None:
    class Sends(wrap):
        async def send_all(self, data: Any) -> None: ...

    class Receives(wrap):
        async def receive_some(self, max_bytes: int | None = None) -> bytes: ...

    ours = blank(trio_uring.SocketStream)
    can = abilities(Sends(ours))
    assert (can.lists_by, can.times_sends, can.counts, can.takes_back) == (None, False, False, True)
    can = abilities(Receives(ours))
    assert (can.times_receives, can.takes_back, can.receives_into) == (False, False, False)
