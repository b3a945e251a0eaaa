"""What a stream can do beyond what trio's abstract classes ask for: the one place where that is
asked.

Rules of this file: it is asked of the stream's class, never of the stream. A wrapper that passes
unknown attributes on to what it wraps (`__getattr__`) would otherwise be bypassed, or be given
arguments that it does not take. What a class says of its method ends where a subclass overrides
that method: the override may take less, and its bytes must not go past it. So a subclass that can
still do it says so again. Of an abstract method it is a promise, which whoever implements it keeps.

Two kinds of streams are what they are made of. A trio.StapledStream can do what its ends can. A
wrapper of this package (`Wrapper`) takes lists and timeouts for any stream; the rest it can do if
the stream can that it wraps.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Abilities:
    """What a stream can do. Of a trio.StapledStream it is to be done with its ends (`sending_end`,
    `receiving_end`).

    A class declares its own as the class attribute `_abilities`; `lists_by` (send_all_vectored),
    `receives_into` and `sends_eof` are also true of whatever class has the method.
    """

    # -- of send_all

    lists_by: Literal["send_all", "send_all_vectored"] | None = None
    """The method that takes a sequence of buffers, and `timeout=`, and sends it as one call."""
    times_sends: bool = False
    """send_all takes `timeout=`, with `send_timeout` as the default."""
    counts: bool = False
    """`bytes_sent` says how much of the last send went. A copy, which is one call to many sends,
    may set it."""
    native_sends: bool = False
    """It is a SendSide, and what that sends with may be used in place of its send_all."""

    # -- of receive_some

    times_receives: bool = False
    """receive_some takes `timeout=`, with `receive_timeout` as the default."""
    takes_back: bool = False
    """Bytes can be put back in front of what it receives: it has `_put_back` and
    `receive_exactly`."""
    receives_into: bool = False
    """It has receive_into, which takes `timeout=` if receive_some does."""
    native_receives: bool = False
    """It is a ReceiveSide, and what that receives with may be used in place of its
    receive_some."""

    # -- of neither

    keeps_sends: bool = False
    """Its sending direction can be kept between calls, so that others get trio.BusyResourceError:
    it has `_begin_send` and `_sending`."""
    keeps_receives: bool = False
    """The same of its receiving direction: it has `_begin_receive` and `_receiving`."""
    sends_eof: bool = False
    """The end of what it sends can be told to its peer: it has send_eof."""

    @property
    def untimed(self) -> dict[str, Any]:
        """Arguments for a receive whose time is already running: the stream must not add its own
        limit."""
        return {"timeout": math.inf} if self.times_receives else {}


class Wrapper:
    """Base of the wrappers that can do what the stream can that they wrap, no more and no less.

    Attributes:
        wrapped: that stream.
    """

    wrapped: Any
    _sink: Any  # what its sends go to, and
    _source: Any  # its receives: the ends of `wrapped`, or what stands in for them


def abilities(stream: object) -> Abilities:
    """What a stream can do; nothing, of a class that nobody here knows and that has none of the
    methods."""
    cls: Any = type(stream)
    # The methods are part of the key: somebody may replace one.
    send_all, receive_some = getattr(cls, "send_all", None), getattr(cls, "receive_some", None)
    found, made_of = _of_class(cls, send_all, receive_some)
    if made_of is None:
        return found
    if made_of is Wrapper:
        assert isinstance(stream, Wrapper)
        return _wrapping(
            found,
            abilities(stream._sink).counts,
            abilities(stream._source).takes_back,
            abilities(stream.wrapped).sends_eof,
        )
    sends = abilities(sending_end(stream))
    return replace(
        abilities(receiving_end(stream)),
        lists_by=sends.lists_by,
        times_sends=sends.times_sends,
        counts=sends.counts,
        native_sends=sends.native_sends,
        keeps_sends=sends.keeps_sends,
        sends_eof=found.sends_eof,
    )


def put_back(stream: Any, chunks: list[bytes]) -> None:
    """Puts bytes back, in order, in front of what a stream that `takes_back` receives."""
    stream._put_back(chunks)


@functools.lru_cache(maxsize=256)
def _wrapping(own: Abilities, counts: bool, takes_back: bool, sends_eof: bool) -> Abilities:
    return replace(
        own,
        counts=own.counts and counts,
        takes_back=own.takes_back and takes_back,
        sends_eof=own.sends_eof and sends_eof,
    )


@functools.lru_cache(maxsize=256)
def _of_class(cls: Any, send_all: Any, receive_some: Any) -> tuple[Abilities, type | None]:
    """What a class says, and what of its objects has to be asked as well: Wrapper,
    trio.StapledStream, or None."""
    of_send, of_receive, of_class = _Said(cls, "send_all"), _Said(cls, "receive_some"), _Said(cls)
    found = Abilities(
        lists_by=of_send.lists_by(),
        times_sends=of_send.can("times_sends"),
        counts=of_send.can("counts"),
        native_sends=of_send.can("native_sends"),
        times_receives=of_receive.can("times_receives"),
        takes_back=of_receive.can("takes_back"),
        receives_into=of_receive.has("receive_into"),
        native_receives=of_receive.can("native_receives"),
        keeps_sends=of_class.can("keeps_sends"),
        keeps_receives=of_class.can("keeps_receives"),
        sends_eof=of_class.has("send_eof"),
    )
    made_of = (kind for kind in (Wrapper, trio.StapledStream) if issubclass(cls, kind))
    return found, next(made_of, None)


class _Said:
    """What a class and its bases say that is true of one of its methods; None: of the class."""

    def __init__(self, cls: type, method: str | None = None) -> None:
        self._bases = cls.__mro__ if method is None else tuple(_speaking_of(cls, method))
        declared = (vars(base).get("_abilities") for base in self._bases)
        self._declared = [each for each in declared if each is not None]

    def can(self, name: str) -> bool:
        return any(getattr(each, name) for each in self._declared)

    def has(self, method: str) -> bool:
        return any(method in vars(base) for base in self._bases)

    def lists_by(self) -> Literal["send_all", "send_all_vectored"] | None:
        for each in self._declared:
            if each.lists_by is not None:
                return each.lists_by  # type: ignore[no-any-return]
        return "send_all_vectored" if self.has("send_all_vectored") else None


def _speaking_of(cls: type, method: str) -> Iterator[type]:
    """The classes whose word on a method counts: down to the one that defines it; and those that
    have it as an abstract one, which that one implements."""
    defined = False
    for base in cls.__mro__:
        own = vars(base).get(method)
        abstract = getattr(own, "__isabstractmethod__", False)
        if defined and own is not None and not abstract:
            return
        if not defined or abstract:
            yield base
        defined = defined or own is not None


# -- what is within


def sending_end(stream: Any) -> Any:
    """What a trio.StapledStream sends to; any other stream itself."""
    while type(stream) is trio.StapledStream:  # which has no subclasses
        stream = stream.send_stream
    return stream


def receiving_end(stream: Any) -> Any:
    """What a trio.StapledStream receives from; any other stream itself."""
    while type(stream) is trio.StapledStream:
        stream = stream.receive_stream
    return stream


def unwrapped(stream: Any, end: Callable[[Any], Any]) -> Any:
    """What is below all wrappers and staples; `end`: receiving_end or sending_end."""
    stream = end(stream)
    while isinstance(stream, Wrapper):
        stream = end(stream.wrapped)
    return stream
