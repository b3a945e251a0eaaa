"""What a stream can do beyond trio's abstract classes. This is the only place that finds out.

Rules of this file: the stream's class is asked, never the stream itself. Otherwise a wrapper that
forwards unknown attributes to what it wraps (`__getattr__`) would be bypassed, or be given
arguments that it does not take. What a class declares about a method ends where a subclass
overrides that method: the override may take less, and its bytes must not go past it. So a subclass
that still has the ability declares it again. Declared about an abstract method, an ability is a
promise that every implementation keeps.

The abilities of two kinds of streams depend on other streams. A trio.StapledStream can do what its
ends can. A wrapper of this package (`Wrapper`) takes lists and timeouts for any stream; everything
else it can do only if the wrapped stream can.
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
    """What a stream can do.

    With a trio.StapledStream, use its ends (`sending_end`, `receiving_end`) to do it.

    A class declares its own abilities in the class attribute `_abilities`. `lists_by`
    (send_all_vectored), `receives_into` and `sends_eof` also hold for any class that has the
    method.
    """

    # -- abilities of send_all

    lists_by: Literal["send_all", "send_all_vectored"] | None = None
    """The method that sends a sequence of buffers in one call, and takes `timeout=`."""
    times_sends: bool = False
    """send_all takes `timeout=`, with `send_timeout` as the default."""
    counts: bool = False
    """`bytes_sent` says how many bytes of the last send went out. A copy, one call that makes many
    sends, may set it."""
    native_sends: bool = False
    """It is a SendSide, whose internals may be used in place of its send_all."""

    # -- abilities of receive_some

    times_receives: bool = False
    """receive_some takes `timeout=`, with `receive_timeout` as the default."""
    takes_back: bool = False
    """Bytes can be put back in front of its next receive: it has `_put_back` and
    `receive_exactly`."""
    receives_into: bool = False
    """It has receive_into, which takes `timeout=` if receive_some does."""
    native_receives: bool = False
    """It is a ReceiveSide, whose internals may be used in place of its receive_some."""

    # -- other abilities

    keeps_sends: bool = False
    """Its sending direction can be held from one call to the next, so that other tasks get
    trio.BusyResourceError: it has `_begin_send` and `_sending`."""
    keeps_receives: bool = False
    """The same for its receiving direction: it has `_begin_receive` and `_receiving`."""
    sends_eof: bool = False
    """It can tell its peer that nothing more will be sent: it has send_eof."""

    @property
    def untimed(self) -> dict[str, Any]:
        """Arguments for a receive inside a time limit, so that the stream does not add its own."""
        return {"timeout": math.inf} if self.times_receives else {}


class Wrapper:
    """Base class of wrappers that can do exactly what the stream that they wrap can do.

    Attributes:
        wrapped: that stream.
    """

    wrapped: Any
    # Where sends go and where receives come from: the ends of `wrapped`, or what stands in for
    # them.
    _sink: Any
    _source: Any


def abilities(stream: object) -> Abilities:
    """What a stream can do: nothing, if its class declares nothing and has none of the methods."""
    cls: Any = type(stream)
    # The methods are part of the cache's key, since somebody may replace one.
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


# Classes, each with its send_all, that takes lists, and whose objects need not be asked.
_takes_lists: set[tuple[type, Any]] = set()


def list_sender(stream: Any) -> Any:
    """The stream, or its sending end, whose own send_all takes a list of buffers; None: it takes
    none."""
    cls = type(stream)
    if (cls, getattr(cls, "send_all", None)) in _takes_lists:
        return stream
    if abilities(stream).lists_by != "send_all":
        return None
    if not issubclass(cls, (Wrapper, trio.StapledStream)) and len(_takes_lists) < 256:
        _takes_lists.add((cls, getattr(cls, "send_all", None)))
    return sending_end(stream)


def put_back(stream: Any, chunks: list[bytes]) -> None:
    """Puts bytes back, in order, in front of the next receive of a stream that `takes_back`."""
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
    """What a class can do; and Wrapper or trio.StapledStream if each object has to be asked too."""
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
    """What a class and its bases declare about one of its methods; None: about the class."""

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
    """The classes whose declarations about a method count.

    These are the classes from `cls` to the one that defines the method, and after that one those in
    which the method is abstract.
    """
    defined = False
    for base in cls.__mro__:
        own = vars(base).get(method)
        abstract = getattr(own, "__isabstractmethod__", False)
        if defined and own is not None and not abstract:
            return
        if not defined or abstract:
            yield base
        defined = defined or own is not None


# -- streams within streams


def sending_end(stream: Any) -> Any:
    """The stream that a trio.StapledStream sends to; any other stream is returned as it is."""
    while type(stream) is trio.StapledStream:  # which has no subclasses
        stream = stream.send_stream
    return stream


def receiving_end(stream: Any) -> Any:
    """The stream that a trio.StapledStream receives from; any other stream is returned as it is."""
    while type(stream) is trio.StapledStream:
        stream = stream.receive_stream
    return stream


def unwrapped(stream: Any, end: Callable[[Any], Any]) -> Any:
    """The stream below all wrappers and StapledStreams; `end`: receiving_end or sending_end."""
    stream = end(stream)
    while isinstance(stream, Wrapper):
        stream = end(stream.wrapped)
    return stream
