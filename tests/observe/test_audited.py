"""Audited and AuditedStream: the digest, the events, the subscribers, and one digest for each seed.

Rules of this file: `reference` is a second, careless implementation of the encoding that the
module's docstring describes.
"""

from __future__ import annotations

import array
import enum
import errno
import hashlib
import logging
import re
import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import Fake, every_call, without_ring

from trio_uring._network.simulated import SimulatedNetwork, run_deterministically
from trio_uring._network.sockets import UringNetwork
from trio_uring._observe.networks import Audited, Metered
from trio_uring._observe.streams import AuditedStream
from trio_uring.audit import Audit, AuditEvent, _known_head

ANYWHERE = ("127.0.0.1", 0)


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def text(string: str) -> bytes:
    return u64(len(string.encode())) + string.encode()


def reference(*events: tuple[str, str, str, list[Any], str]) -> str:
    """The digest of (kind, operation, address, buffers or sizes, error)."""
    encoded = b""
    for kind, operation, address, buffers, error in events:
        encoded += text(kind) + text(operation) + text(address) + u64(len(buffers))
        for buffer in buffers:
            encoded += u64(buffer) if isinstance(buffer, int) else u64(len(buffer)) + buffer
        encoded += text(error)
    return hashlib.sha256(encoded).hexdigest()


# -- the digest


@pytest.mark.no_ring
def test_the_digest_of_nothing():
    assert Audit().digest() == hashlib.sha256().hexdigest()
    assert Audit().events == 0


class Host(str, enum.Enum):
    SERVER = "server"


class Port(enum.IntEnum):
    HTTP = 80


ODD_ADDRESSES = [
    (Host.SERVER, 80),
    ("server", Port.HTTP),
    ("server", 80.0),
    ("server", True),
    ("server", 1),
    ("server", 80, 0),
    ["server", 80],
    object(),
]


@pytest.mark.no_ring
@pytest.mark.parametrize(
    "address", ODD_ADDRESSES, ids=lambda address: re.sub(r" at 0x\w+", "", str(address))
)
def test_the_digest_does_not_depend_on_what_the_process_did_before(address):
    def digest() -> str:
        audit = Audit()
        audit.attempt("dial", address)
        return audit.digest()

    digests = set()
    for earlier in [None, ("server", 80), *ODD_ADDRESSES]:
        _known_head.cache_clear()
        Audit().attempt("dial", earlier)
        digests.add(digest())
    assert len(digests) == 1
    if address in [(Host.SERVER, 80), ("server", Port.HTTP)] and isinstance(address[1], int):
        assert digests == {reference(("attempt", "dial", "server 80", [], ""))}


@without_ring
async def test_the_digest_is_that_of_the_documented_encoding():
    audit = Audit()
    stream = AuditedStream(Fake(), audit)
    await stream.send_all([b"ab", bytearray(b"c"), b""])
    await stream.receive_some()
    buffer = bytearray(b"12345")
    await stream.receive_into(buffer)

    async def fail():
        raise OSError(errno.EPIPE, "pipe")

    stream.wrapped.behave = fail
    with pytest.raises(OSError, match="pipe"):
        await stream.receive_exactly(5)
    peer = "peer 1"
    assert audit.digest() == reference(
        ("attempt", "send", peer, [b"ab", b"c", b""], ""),
        ("success", "send", peer, [2, 1, 0], ""),
        ("attempt", "receive", peer, [], ""),
        ("success", "receive", peer, [b"some"], ""),
        ("attempt", "receive", peer, [], ""),
        ("success", "receive", peer, [b"12"], ""),
        ("attempt", "receive", peer, [], ""),
        ("failure", "receive", peer, [], "BrokenPipeError: [Errno 32] pipe"),
    )
    assert audit.events == 8


@without_ring
async def test_what_a_network_folds():
    audit = Audit()
    network = Audited(SimulatedNetwork(), audit)
    listener = await network.bind(("127.0.0.1", 80))
    client = await network.dial(("127.0.0.1", 80))
    server = await listener.accept()
    at, of_client = "127.0.0.1 80", f"127.0.0.1 {server.remote_address[1]}"
    with pytest.raises(OSError, match="refused") as refused:
        await network.dial(("127.0.0.1", 81))
    for resource in (client, server, listener):
        await resource.aclose()
    assert audit.digest() == reference(
        ("attempt", "bind", at, [], ""),
        ("success", "bind", at, [], ""),
        ("attempt", "dial", at, [], ""),
        ("success", "dial", at, [], ""),
        ("attempt", "accept", at, [], ""),
        ("success", "accept", of_client, [], ""),
        ("attempt", "dial", "127.0.0.1 81", [], ""),
        ("failure", "dial", "127.0.0.1 81", [], f"ConnectionRefusedError: {refused.value}"),
        *(
            (kind, "close", where, [], "")
            for where in (at, of_client, at)
            for kind in ("attempt", "success")
        ),
    )


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["attempt", "success", "failure"]),
        st.sampled_from(["send", "receive", "close"]),
        st.sampled_from([None, ("a", 1), ("a", 11), ("a 1", 1)]),
        st.lists(st.binary(max_size=3), max_size=3),
        st.sampled_from(["", "x", "xy"]),
    ),
    max_size=3,
)


def fold(events: list[Any]) -> tuple[str, list[Any]]:
    """The digest, and what of the events it should depend on."""
    audit, matters = Audit(), []
    for kind, operation, address, buffers, message in events:
        if kind == "failure":
            audit.failure(operation, address, ValueError(message))
            matters.append((kind, operation, address, message))
        else:
            getattr(audit, kind)(operation, address, buffers)
            sizes = (kind, operation) == ("success", "send")
            matters.append(
                (kind, operation, address, [len(data) for data in buffers] if sizes else buffers)
            )
    return audit.digest(), matters


@pytest.mark.no_ring
@given(EVENTS, EVENTS)
def test_digests_are_equal_if_and_only_if_the_events_are(first, second):
    (digest, matters), (other, others) = fold(first), fold(second)
    assert (digest == other) == (matters == others)
    assert fold(first)[0] == digest


@pytest.mark.no_ring
def test_buffers_of_every_kind_are_hashed_as_their_bytes():
    table = memoryview(bytes(range(12))).cast("B", (3, 4))
    numbers = array.array("I", [1, 2, 3])
    for buffer, data in [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (table, bytes(range(12))),
        (numbers, numbers.tobytes()),
        (memoryview(numbers)[:0], b""),
        (memoryview(b""), b""),
    ]:
        audit, expected = Audit(), Audit()
        audit.attempt("send", None, [buffer, b"next"])
        expected.attempt("send", None, [data, b"next"])
        assert (
            audit.digest()
            == expected.digest()
            == reference(("attempt", "send", "", [data, b"next"], ""))
        )


@pytest.mark.no_ring
def test_what_is_no_buffer_has_a_digest_of_its_own():
    released = memoryview(b"")
    released.release()
    digests = set()
    for thing in ("text", 5, released, b"", b"\xff" * 8):
        audit = Audit()
        audit.attempt("send", None, [thing])
        audit.success("send", None, [thing])
        digests.add(audit.digest())
    assert len(digests) == 5


@pytest.mark.no_ring
def test_buffers_are_not_copied():
    audit = Audit()
    large = [bytearray(1 << 22), memoryview(bytes(1 << 22)), bytes(1 << 22)]
    tracemalloc.start()
    try:
        audit.attempt("send", None, large)
        audit.success("receive", None, large)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    large[0].append(1)  # nor held


@without_ring
async def test_texts_that_differ_from_run_to_run_do_not_count():
    def digest_of(error: BaseException, outcome: Any) -> str:
        audit = Audit()
        audit.failure("send", None, error, outcome)
        return audit.digest()

    assert digest_of(ValueError(repr(Fake())), "failed") == digest_of(
        ValueError(repr(Fake())), "failed"
    )
    assert digest_of(ValueError("1"), "failed") != digest_of(ValueError("2"), "failed")
    assert digest_of(trio.TooSlowError("1"), "timed_out") == digest_of(
        trio.TooSlowError("2"), "timed_out"
    )

    class Nameless(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert digest_of(Nameless(), "failed") == digest_of(Nameless(), "failed")
    events: list[AuditEvent] = []
    for _ in range(2):
        stream = AuditedStream(Fake(trio.sleep_forever))
        stream.audit.subscribe(events.append)
        with trio.move_on_after(1):
            await stream.receive_some()
    assert [(event.error, event.outcome) for event in events] == [
        (None, None),
        ("Cancelled", "cancelled"),
    ] * 2


# -- runs


async def conversation(network: SimulatedNetwork, audit: Audit) -> None:
    audited = Audited(network, audit)

    async def echo(stream):
        async for data in stream:
            await stream.send_all(data)

    async def client(number):
        async with await audited.dial(("server", 80)) as stream:
            for count in range(20):
                await stream.send_all([b"%d" % number, bytes(count * 100)])
                with trio.move_on_after(0.0005):
                    await stream.receive_exactly(count * 100)
            await stream.send_eof()
            async for _ in stream:
                pass

    async with trio.open_nursery() as nursery:
        host = Audited(network.host("server"), audit)
        nursery.start_soon(trio.serve_listeners, echo, [await host.bind(("", 80))])
        async with trio.open_nursery() as clients:
            for number in range(5):
                clients.start_soon(client, number)
        nursery.cancel_scope.cancel()


def digest_of_run(seed: int, order: int) -> str:
    audit = Audit()
    run_deterministically(
        conversation, SimulatedNetwork(seed, latency=(0.0001, 0.001)), audit, seed=order
    )
    assert audit.events > 500
    return audit.digest()


@pytest.mark.no_ring
def test_a_seed_has_one_digest_and_another_seed_another():
    first = digest_of_run(1, 1)
    assert digest_of_run(1, 1) == first
    assert len({first, digest_of_run(2, 1), digest_of_run(1, 2)}) == 3


async def test_on_the_ring():
    events: list[AuditEvent] = []
    network = Audited(Metered(UringNetwork()))
    network.audit.subscribe(events.append)
    async with await network.bind(ANYWHERE) as listener:
        client = await network.dial(listener.local_address)
        server = await listener.accept()
    await client.send_all([b"ab", b"cde"])
    assert await server.receive_exactly(5) == b"abcde"
    await client.aclose()
    await server.aclose()
    done = [event.operation for event in events if event.kind == "success"]
    assert done == ["bind", "dial", "accept", "close", "send", "receive", "close", "close"]
    assert [event.sizes for event in events if event.sizes] == [(2, 3), (2, 3), (5,)]
    assert events[1].address == listener.local_address
    assert events[5].address == client.local_address


# -- subscribers


@without_ring
async def test_every_operation_has_its_events():
    for number in range(9):
        stream = AuditedStream(Fake())
        events: list[AuditEvent] = []
        digests: list[str] = []
        stream.audit.subscribe(events.append)
        stream.audit.subscribe(lambda event, of=stream.audit, to=digests: to.append(of.digest()))
        operation, call = every_call(stream)[number]
        await call()
        assert [(event.number, event.kind, event.operation) for event in events] == [
            (1, "attempt", operation),
            (2, "success", operation),
        ]
        assert all(event.address == ("peer", 1) and event.error is None for event in events)
        assert digests[0] != digests[1] == stream.audit.digest()


@pytest.mark.no_ring
def test_subscribers_come_and_go():
    audit, seen = Audit(), []

    def once(event):
        seen.append(("once", event.number))
        leave()

    leave = audit.subscribe(once)
    first = audit.subscribe(lambda event: seen.append(("all", event.number)))
    twice = lambda event: seen.append(("twice", event.number))  # noqa: E731
    second, third = audit.subscribe(twice), audit.subscribe(twice)
    audit.attempt("send")
    second()
    second()
    audit.attempt("send")
    first()
    third()
    audit.attempt("send")
    assert seen == [("once", 1), ("all", 1), ("twice", 1), ("twice", 1), ("all", 2), ("twice", 2)]


@without_ring
async def test_a_subscriber_that_raises_breaks_nothing(caplog):
    plain = AuditedStream(Fake())
    stream = AuditedStream(Fake())
    seen: list[AuditEvent] = []
    calls = []

    def fail(event):
        calls.append(event)
        raise ValueError("a subscriber's")

    stream.audit.subscribe(fail)
    stream.audit.subscribe(seen.append)
    for _ in range(2):
        assert await plain.receive_some() == await stream.receive_some() == b"some"
    assert (len(calls), len(seen)) == (1, 4)
    assert stream.audit.digest() == plain.audit.digest()
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("trio_uring", "ERROR")
    ]
    assert "a subscriber's" in caplog.text


def some_events(audit: Audit) -> None:
    audit.attempt("send", ("peer", 1), [b"abc", b"d"])
    audit.success("send", ("peer", 1), [b"abc", b"d"])
    audit.failure("receive", ("peer", 1), OSError(errno.EPIPE, "pipe"))
    audit.failure("receive", None, trio.TooSlowError(), "timed_out")
    audit.failure("dial", ("%s", 1), trio.TooSlowError(), "cancelled")


@pytest.mark.no_ring
def test_logging_with_the_standard_library(caplog):
    audit = Audit()
    logger = logging.getLogger("test of audit")
    caplog.set_level(logging.DEBUG, "test of audit")
    stop = audit.log_to(logger)
    some_events(audit)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "network send attempt ('peer', 1) 4 bytes"),
        ("DEBUG", "network send success ('peer', 1) 4 bytes"),
        ("WARNING", "network receive failure ('peer', 1) BrokenPipeError: [Errno 32] pipe"),
        ("WARNING", "network receive failure None TooSlowError"),
        ("DEBUG", "network dial failure ('%s', 1) TooSlowError"),
    ]
    record: Any = caplog.records[0]
    assert (record.event_number, record.event_kind, record.operation, record.sizes) == (
        1,
        "attempt",
        "send",
        (3, 1),
    )
    assert (record.address, record.error, record.outcome) == (("peer", 1), None, None)
    caplog.clear()
    caplog.set_level(logging.WARNING, "test of audit")
    some_events(audit)
    assert len(caplog.records) == 2
    stop()
    some_events(audit)
    assert len(caplog.records) == 2
    audit.log_to(logging.LoggerAdapter(logger, {}))
    some_events(audit)
    assert len(caplog.records) == 4


@pytest.mark.no_ring
def test_logging_with_structlog():
    structlog = pytest.importorskip("structlog")
    audit = Audit()
    with structlog.testing.capture_logs() as logs:
        stop = audit.log_to(structlog.get_logger().bind(server="one"))
        some_events(audit)
        stop()
        some_events(audit)
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("debug", "network send attempt"),
        ("debug", "network send success"),
        ("warning", "network receive failure"),
        ("warning", "network receive failure"),
        ("debug", "network dial failure"),
    ]
    assert (logs[2]["server"], logs[2]["event_number"], logs[2]["event_kind"]) == (
        "one",
        3,
        "failure",
    )
    assert (logs[2]["operation"], logs[2]["address"], logs[2]["sizes"]) == (
        "receive",
        ("peer", 1),
        (),
    )
    assert (logs[2]["error"], logs[2]["outcome"]) == ("BrokenPipeError: [Errno 32] pipe", "failed")
