"""Datagrams to messages and back, without a socket.

Rules of this file: the kernel's side is played by the test: it splits what UDP_SEGMENT says, and joins as UDP_GRO does.
"""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_uring._addresses import pack_address
from trio_uring._ancillary import pack_control
from trio_uring._udp_messages import (
    CONTROL_MAX,
    SEGMENTED_MAX,
    SEGMENTS_MAX,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    coalesce,
    parse_shots,
    segment_control,
    segment_size,
    split,
)

pytestmark = pytest.mark.no_ring
NAMES = [b"one", b"two"]
PAYLOADS = st.one_of(
    st.sampled_from([b"", b"a", b"bb", b"x" * 700, b"y" * 1400, b"z" * 40000]),
    st.binary(max_size=3),
    st.just(memoryview(b"view")),
)


def kernel_splits(payload: bytes, segment: int) -> list[bytes]:
    assert len(payload) <= 65507
    if not segment:
        return [payload]
    parts = [payload[at : at + segment] for at in range(0, len(payload), segment)]
    assert len(parts) <= 64
    return parts


@given(st.lists(st.tuples(PAYLOADS, st.sampled_from(NAMES)), max_size=200), st.sampled_from([0, 1, 1000, SEGMENTED_MAX]))
def test_what_goes_out_is_what_was_given(items, segment_max):
    out, at = [], 0
    for message in coalesce(items, 0, segment_max):
        parts = kernel_splits(bytes(message.payload), message.segment)
        assert len(parts) == message.datagrams
        assert message.segment <= segment_max
        out += [(part, message.address) for part in parts]
        at += message.datagrams
    assert out == [(bytes(payload), name) for payload, name in items]
    assert at == len(items)


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
    items = [(bytes(size), b"to") for size in sizes]
    assert [message.datagrams for message in coalesce(items, 0, SEGMENTED_MAX)] == counts


def test_a_run_has_one_address():
    items = [(b"ab", b"1"), (b"ab", b"1"), (b"ab", b"2"), (b"a", b"1")]
    assert [(m.address, m.datagrams) for m in coalesce(items, 0, 100)] == [(b"1", 2), (b"2", 1), (b"1", 1)]


def test_it_begins_where_it_is_told():
    items = [(b"a", b""), (b"b", b""), (b"c", b"")]
    assert [bytes(m.payload) for m in coalesce(items, 1, 100)] == [b"bc"]


def test_limits_are_the_kernels():
    assert SEGMENTS_MAX == 64
    assert segment_control(1400) == [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1400))]
    assert (SOL_UDP, UDP_SEGMENT, UDP_GRO) == (socket.IPPROTO_UDP, 103, 104)


def test_the_size_of_segments_is_found_among_other_control_data():
    gro = (SOL_UDP, UDP_GRO, struct.pack("=i", 1200))
    assert segment_size(pack_control([(socket.SOL_SOCKET, 29, bytes(16)), gro])) == 1200
    assert segment_size(pack_control([(socket.SOL_SOCKET, 29, bytes(16))])) == 0
    assert segment_size(pack_control([gro])[:18]) == 0  # cut
    assert segment_size(b"") == 0


@given(st.binary(max_size=50), st.integers(0, 10), st.integers(0, 60))
def test_what_is_split_is_all_there(data, start, segment):
    start = min(start, len(data))
    parts = [payload for payload, _ in split(data, start, segment, None)]
    assert b"".join(parts) == data[start:]
    if segment:
        assert all(len(part) == segment for part in parts[:-1])
        assert len(parts[-1]) <= segment
    else:
        assert len(parts) == 1


@given(st.binary(max_size=100), st.sampled_from([0, 1, 7]), st.sampled_from(["127.0.0.1", "10.1.2.3"]))
def test_a_shot_is_parsed(payload, segment, host):
    name = pack_address(socket.AF_INET, (host, 53))
    control = pack_control([(SOL_UDP, UDP_GRO, struct.pack("=i", segment))]) if segment else b""
    shot = struct.pack("=IIII", len(name), len(control), len(payload), 0x20) + name.ljust(128, b"?")
    shot += control.ljust(CONTROL_MAX, b"?") + payload
    datagrams = []
    assert parse_shots([shot, shot], datagrams) == 0x20
    assert datagrams == split(payload, 0, segment, (host, 53)) * 2
