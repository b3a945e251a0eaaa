"""Datagrams become messages and back, without a socket.

Rules of this file: the test plays the kernel: it splits as UDP_SEGMENT says, and joins as UDP_GRO
does.
"""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_uring._udp.messages import (
    IP_PKTINFO,
    LIMITS_MAX,
    SEGMENTED_MAX,
    SEGMENTS_MAX,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    Inbox,
    Local,
    Outbox,
    is_numeric,
    local_control,
    read_control,
    segment_control,
)

pytestmark = pytest.mark.no_ring
NAMES = [b"one", b"two"]
SOURCES = [(), local_control(socket.AF_INET, "127.0.0.9", 0)]
PAYLOADS = st.one_of(
    st.sampled_from([b"", b"a", b"bb", b"x" * 700, b"y" * 1400, b"z" * 40000]),
    st.binary(max_size=3),
    st.just(memoryview(b"view")),
)
ITEM = st.tuples(PAYLOADS, st.sampled_from(NAMES), st.sampled_from([*SOURCES, ()]))
ITEMS = st.lists(ITEM, max_size=200)


def kernel_splits(message):
    (payload,), control, _, segment, datagrams = message
    assert len(payload) <= 65507
    assert (segment_control(segment) in control) == bool(segment)
    size = segment or len(payload) or 1
    parts = [bytes(payload[at : at + size]) for at in range(0, len(payload), size)] or [b""]
    assert len(parts) == datagrams <= 64
    return parts


def source_of(message):
    return tuple(entry for entry in message[1] if entry[0] != SOL_UDP)


@given(ITEMS, st.sampled_from([0, 1, 1000, SEGMENTED_MAX]), st.integers(1, 50))
def test_what_goes_out_is_what_was_given(items, segment_max, most):
    outbox, out = Outbox(items, segment_max, {}), []
    while outbox.at < len(items):
        for message in outbox.messages(most):
            *_, address, segment, _ = message
            assert segment <= segment_max
            out += [(part, address, source_of(message)) for part in kernel_splits(message)]
        assert outbox.at == len(out)
    assert out == [(bytes(payload), name, source) for payload, name, source in items]


@given(ITEMS, st.sets(st.sampled_from(NAMES)), st.integers(1, 5), st.integers(0, 2**20))
def test_a_kernel_that_refuses_and_blocks_gets_them_all(items, refusing, most, blocking):
    """Runs to some addresses are refused; now and then it would block."""
    limits: dict[bytes, int] = {}
    outbox, out, refusals = Outbox(items, SEGMENTED_MAX, limits), [], 0
    while outbox.at < len(items):
        for message in outbox.messages(most):
            blocking = (blocking * 5 + 1) % 2**20
            if blocking % 7 == 0:
                break
            *_, address, segment, _ = message
            if segment and address in refusing:
                refusals += 1
                outbox.refused(message, 0)
                break
            out += kernel_splits(message)
    assert out == [bytes(payload) for payload, *_ in items]
    assert refusals <= len(refusing)
    assert set(limits) <= refusing


def runs(items, limits=None, segment_max=SEGMENTED_MAX):
    messages = Outbox(items, segment_max, {} if limits is None else limits).messages(1000)
    return [(address, datagrams) for *_, address, _, datagrams in messages]


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([5] * 64, [64]),
        ([5] * 65, [64, 1]),
        ([5, 5, 3, 3, 3], [3, 2]),  # the shorter one ends the run
        ([5, 5, 6], [2, 1]),
        ([0, 0, 5], [1, 1, 1]),
        ([5, 0], [1, 1]),
        ([30000, 30000, 30000], [2, 1]),
        ([32754, 32754], [1, 1]),  # one byte too many together
        ([32753, 32753], [2]),
        ([], []),
    ],
)
def test_runs(sizes, counts):
    assert [count for _, count in runs([(bytes(size), b"to", ()) for size in sizes])] == counts


def test_a_run_has_one_address():
    items = [(b"ab", b"1", ()), (b"ab", b"1", ()), (b"ab", b"2", ()), (b"a", b"1", ())]
    assert runs(items, segment_max=100) == [(b"1", 2), (b"2", 1), (b"1", 1)]


def test_a_run_has_one_local_address():
    items = [(b"ab", b"1", source) for source in [SOURCES[0], SOURCES[1], SOURCES[1], SOURCES[0]]]
    assert [count for _, count in runs(items)] == [1, 2, 1]


def test_a_run_whose_datagrams_fail_alone_is_no_limit():
    """It is the address that is wrong, not that there are several."""
    limits: dict[bytes, int] = {}
    outbox = Outbox([(b"x", b"bad", ())] * 3, 100, limits)
    messages = outbox.messages(32)
    outbox.refused(next(messages), 0)
    assert next(outbox.messages(32)) == ((b"x",), (), b"bad", 0, 1)  # and this one fails
    assert outbox.at == 0
    assert not limits


def test_a_limit_is_of_one_address():
    limits: dict[bytes, int] = {}
    given_items = [(b"12345", b"far", ()), (b"12345", b"near", ()), (b"123", b"far", ())]
    items = [item for item in given_items for _ in range(3)]
    outbox = Outbox(items, 100, limits)
    outbox.refused(next(outbox.messages(32)), 4)
    assert [message[-1] for message in outbox.messages(32)] == [1, 1, 1, 3, 3]
    assert limits == {b"far": 4}
    assert runs(items, limits, 100) == [(b"far", 1)] * 3 + [(b"near", 3), (b"far", 3)]


def test_limits_do_not_grow_for_ever():
    limits: dict[int, int] = dict.fromkeys(range(LIMITS_MAX), 0)
    outbox = Outbox([(b"x", b"to", ())] * 2, 100, limits)
    outbox.refused(next(outbox.messages(32)), 0)
    assert len(list(outbox.messages(32))) == 2
    assert limits == {b"to": 0}


def test_limits_are_the_kernels():
    assert SEGMENTS_MAX == 64
    assert segment_control(1400) == (SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1400))
    assert (SOL_UDP, UDP_SEGMENT, UDP_GRO) == (socket.IPPROTO_UDP, 103, 104)


# -- control data

GRO = (SOL_UDP, UDP_GRO, struct.pack("=i", 1200))
OTHER = (socket.SOL_SOCKET, 29, bytes(16))


def pktinfo(interface, local, destination):
    data = struct.pack("=i4s4s", interface, socket.inet_aton(local), socket.inet_aton(destination))
    return socket.IPPROTO_IP, IP_PKTINFO, data


def pktinfo6(host, interface):
    data = struct.pack("=16sI", socket.inet_pton(socket.AF_INET6, host), interface)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data


def test_the_size_of_segments_is_found_among_other_control_data():
    assert read_control([OTHER, GRO]) == (1200, None)
    assert read_control([OTHER]) == (0, None)
    assert read_control([(*GRO[:2], GRO[2][:3])]) == (0, None)  # cut
    assert read_control([]) == (0, None)


@pytest.mark.parametrize(
    ("entry", "local"),
    [
        (pktinfo(3, "10.0.0.1", "10.0.0.1"), Local("10.0.0.1", 3)),
        (pktinfo(3, "10.0.0.1", "10.0.0.255"), Local("10.0.0.1", 3)),  # broadcast
        (pktinfo(3, "10.0.0.1", "224.0.0.251"), Local("10.0.0.1", 3)),
        (pktinfo(0, "0.0.0.0", "10.0.0.1"), Local("10.0.0.1", 0)),  # from before it was asked for
        (pktinfo(0, "0.0.0.0", "224.0.0.251"), Local("0.0.0.0", 0)),
        (pktinfo6("fe80::1", 2), Local("fe80::1", 2)),
        (pktinfo6("ff02::fb", 2), Local("::", 2)),
        (pktinfo6("::ffff:10.0.0.1", 2), Local("::ffff:10.0.0.1", 2)),
        ((*pktinfo6("::1", 2)[:2], b"cut"), None),
    ],
)
def test_where_it_came_to(entry, local):
    assert read_control([OTHER, GRO, entry]) == (1200, local)


@pytest.mark.parametrize(
    ("family", "given_local", "entry"),
    [
        (socket.AF_INET, ("10.0.0.1", 3), pktinfo(0, "10.0.0.1", "0.0.0.0")),
        (socket.AF_INET, ("169.254.0.1", 3), pktinfo(3, "169.254.0.1", "0.0.0.0")),
        (socket.AF_INET, ("0.0.0.0", 3), pktinfo(3, "0.0.0.0", "0.0.0.0")),
        (socket.AF_INET, ("", 0), pktinfo(0, "0.0.0.0", "0.0.0.0")),
        (socket.AF_INET6, ("2001:db8::1", 3), pktinfo6("2001:db8::1", 0)),
        (socket.AF_INET6, ("fe80::1", 3), pktinfo6("fe80::1", 3)),
        (socket.AF_INET6, ("::", 3), pktinfo6("::", 3)),
        (socket.AF_INET6, ("", 3), pktinfo6("::", 3)),
    ],
)
def test_where_it_leaves_from(family, given_local, entry):
    """The interface counts where the host leaves a choice."""
    assert local_control(family, *given_local) == (entry,)


@pytest.mark.parametrize(
    ("family", "given_local"),
    [
        (socket.AF_INET, ("localhost", 0)),
        (socket.AF_INET, ("127.1", 0)),
        (socket.AF_INET, ("::1", 0)),
        (socket.AF_INET6, ("127.0.0.1", 0)),
        (socket.AF_INET, (5, 0)),
        (socket.AF_INET, ("0.0.0.0", "lo")),
        (socket.AF_INET, ("0.0.0.0", 2**40)),
    ],
)
def test_no_local_address(family, given_local):
    with pytest.raises(ValueError, match="local must be a numeric AF_INET"):
        local_control(family, *given_local)


def test_what_is_numeric():
    assert is_numeric(socket.AF_INET, "127.0.0.1", 9)
    assert is_numeric(socket.AF_INET6, "::1", 9, 0, 1)
    for host in ("127.1", "127.0.0.1 x", "1", "0x7f.0.0.1", "", "::1", "<broadcast>", "a\0b"):
        assert not is_numeric(socket.AF_INET, host, 9)
    for host in ("127.0.0.1", "fe80::1%lo", "localhost"):
        assert not is_numeric(socket.AF_INET6, host, 9)
    for address in (("127.0.0.1",), ("127.0.0.1", 9.0), ("127.0.0.1", "9"), (1, 9), ()):
        assert not is_numeric(socket.AF_INET, *address)


# -- receiving


@given(st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 10))), st.integers(1, 8))
def test_what_was_joined_is_split(messages, most):
    inbox, expected = Inbox(), []
    local = Local("10.0.0.1", 3)
    for data, segment in messages:
        inbox.put(data, segment, "from", local if segment else None)
        size = segment or max(1, len(data))
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [data]
        expected += [(part, "from", local if segment else Local("")) for part in parts]
    assert inbox.datagrams == len(expected)
    got = []
    while inbox.datagrams:
        with_local = len(got) % 2 == 0
        taken = inbox.take(most, with_local)
        assert 1 <= len(taken) <= most
        start = len(got)
        wanted = expected[start : start + len(taken)]
        assert taken == (wanted if with_local else [entry[:2] for entry in wanted])
        got += wanted
    assert got == expected
    assert inbox.take(most, True) == []
