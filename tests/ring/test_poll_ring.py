"""What only the epoll ring does: closed and reused descriptors, pipes that could block the thread, when its descriptor wakes.

Rules of this file: the kernel's own descriptors, and nothing sleeps. Whether the ring's descriptor is readable, poll(2) says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import types
from typing import TYPE_CHECKING

import pytest

from trio_uring import RingBrokenError, RingUnavailableError, _calls, _poll_ring
from trio_uring._contract import LARGE_SIZE, SMALL_SIZE
from trio_uring._op import LARGE_GROUP, SMALL_GROUP, Opcode, Operation
from trio_uring._poll_ring import PollRing

if TYPE_CHECKING:
    from collections.abc import Iterator

CURRENT = 2**64 - 1  # position


@pytest.fixture
def ring() -> Iterator[PollRing]:
    ring = PollRing()
    yield ring
    for op in list(ring.table.values()):
        ring.cancel(op)
    go(ring)
    assert ring.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        yield a, b


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()  # blocking, as a shared one is
    yield ends
    for fd in ends:
        os.close(fd)


def submit(ring: PollRing, opcode: int, fd: int, data=None, **fields) -> Operation:
    op = Operation(opcode, fd)
    if data is not None:
        op.buffer, op.length = data, len(data)
    for name, value in fields.items():
        setattr(op, name, value)
    assert ring.submit(op)
    return op


def go(ring: PollRing) -> list[Operation]:
    """Flushes and drains once."""
    done: list[Operation] = []
    assert ring.flush()
    ring.drain(done)
    return done


def readable(ring: PollRing) -> bool:
    poller = select.poll()
    poller.register(ring.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def count_polls(ring: PollRing, monkeypatch) -> list[list[tuple[int, int]]]:
    """What every look at the epoll instance found."""
    found, real = [], ring._epoll

    def poll(*arguments):
        found.append(real.poll(*arguments))
        return found[-1]

    stand_in = types.SimpleNamespace(poll=poll, unregister=real.unregister, register=real.register, close=real.close)
    monkeypatch.setattr(ring, "_epoll", stand_in)
    return found


# -- the descriptor


def test_the_descriptor_is_readable_exactly_when_there_is_something_to_do(ring, pair):
    a, b = pair
    assert not readable(ring)
    receiving = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
    assert not readable(ring)
    assert go(ring) == []
    assert not readable(ring)
    sending = submit(ring, Opcode.SEND, a.fileno(), b"x")
    assert not readable(ring)
    ring.flush()
    assert readable(ring)
    assert ring.ready()
    assert set(go(ring)) == {sending, receiving}
    assert not readable(ring)
    assert not ring.ready()
    a.send(b"y")  # nobody waits for it
    assert not readable(ring)


def test_what_is_done_at_once_is_told_every_time_and_no_longer_than_it_takes(ring, pair):
    """With nothing that waits: only the eventfd tells."""
    for _ in range(3):
        sending = submit(ring, Opcode.SEND, pair[0].fileno(), b"x")
        ring.flush()
        ring.flush()
        assert readable(ring)
        assert go(ring) == [sending]
        assert not readable(ring)


@pytest.mark.parametrize("reused", [False, True])
def test_a_registration_that_outlives_its_number_keeps_nobody_awake(ring, pair, reused):
    """The descriptor was closed behind our back, and its file is open elsewhere: nothing can take it out of the epoll."""
    a, b = pair
    c, d = socket.socketpair()
    ours = os.dup(b.fileno())
    op = submit(ring, Opcode.RECV, ours, bytearray(8))
    assert go(ring) == []
    if reused:
        os.dup2(c.fileno(), ours)
        later = submit(ring, Opcode.RECV, ours, bytearray(8))
        assert go(ring) == [op]
        d.send(b"y")
        assert go(ring) == [later]
        os.close(ours)
    else:
        os.close(ours)
        ring.cancel(op)
        assert go(ring) == [op]
    c.close()
    d.close()
    a.send(b"x")
    assert go(ring) == []
    assert not readable(ring)


def test_a_cancel_makes_it_readable(ring, pair):
    op = submit(ring, Opcode.RECV, pair[1].fileno(), bytearray(8))
    assert go(ring) == []
    ring.cancel(op)
    ring.flush()
    assert readable(ring)
    assert go(ring) == [op]
    assert not readable(ring)


def test_each_message_is_one_event(ring, pair, monkeypatch):
    """No wake-up without something to do: a thousand messages, and as many events."""
    a, b = pair
    found = count_polls(ring, monkeypatch)
    for _ in range(1000):
        receiving = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
        ring.flush()
        assert not readable(ring)
        a.send(b"x")
        assert readable(ring)
        assert go(ring) == [receiving]
    assert [[fd for fd, _ in events] for events in found] == [[b.fileno()]] * 1000


def test_half_a_wish_is_no_event(ring, pair, monkeypatch):
    """A reader that waits is not woken by room to write, and a writer not by what can be read."""
    a, b = pair
    fill(a)
    reading = submit(ring, Opcode.RECV, a.fileno(), bytearray(8))
    writing = submit(ring, Opcode.SEND, a.fileno(), b"more")
    assert go(ring) == []
    found = count_polls(ring, monkeypatch)
    b.send(b"x")
    assert go(ring) == [reading]
    assert not readable(ring)
    empty(b)
    assert go(ring) == [writing]
    assert [len(events) for events in found] == [1, 1]


def test_more_events_than_one_drain_takes(ring, monkeypatch):
    monkeypatch.setattr(_poll_ring, "EVENTS_MAX", 3)
    pairs = [socket.socketpair() for _ in range(8)]
    ops = [submit(ring, Opcode.RECV, b.fileno(), bytearray(8)) for _, b in pairs]
    go(ring)
    for a, _ in pairs:
        a.send(b"x")
    counts, done = [], []
    while readable(ring):
        done += (some := go(ring))
        counts.append(len(some))
    assert counts == [3, 3, 2]
    assert set(done) == set(ops)
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()


def test_wait_returns_for_a_completion_and_when_the_time_is_up(ring, pair):
    a, b = pair
    op = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
    go(ring)
    ring.wait(0.01)
    assert go(ring) == []
    a.send(b"x")
    ring.wait(60)
    assert go(ring) == [op]


def fill(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536), socket.MSG_DONTWAIT)


def empty(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(65536, socket.MSG_DONTWAIT)


# -- closed and reused descriptors


def test_a_number_is_used_again_between_two_waits(ring):
    """The registration of the first is gone with it: the second must be armed all the same."""
    for _ in range(3):
        a, b = socket.socketpair()
        os.dup2(b.fileno(), 200)
        b.close()
        op = submit(ring, Opcode.RECV, 200, bytearray(8))
        assert go(ring) == []
        a.send(b"x")
        assert go(ring) == [op]
        os.close(200)
        a.close()


def test_closed_while_waiting_it_waits_until_it_is_cancelled(ring, pair):
    a, b = pair
    op = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
    go(ring)
    b.close()
    a.close()
    assert go(ring) == []
    ring.cancel(op)
    assert go(ring) == [op]
    assert op.res == -errno.ECANCELED


def test_whoever_waits_for_a_closed_descriptor_never_touches_the_next_of_its_number(ring, pair):
    a, b = socket.socketpair()
    os.dup2(b.fileno(), 200)
    stale = submit(ring, Opcode.RECV, 200, bytearray(8))
    go(ring)
    b.close()
    os.dup2(pair[1].fileno(), 200)
    fill(pair[1])
    fresh = submit(ring, Opcode.SEND, 200, b"x")
    assert go(ring) == [stale]
    assert stale.res == -errno.EBADF
    pair[0].send(b"a stranger's")
    assert go(ring) == []
    empty(pair[0])
    assert go(ring) == [fresh]
    assert pair[1].recv(100) == b"a stranger's"
    os.close(200)
    a.close()


def test_an_old_registration_that_a_duplicate_keeps_is_no_harm(ring, pair):
    a, b = pair
    with socket.socket(fileno=os.dup(b.fileno())) as kept:
        op = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
        go(ring)
        ring.cancel(op)
        b.close()
        assert go(ring) == [op]
        a.send(b"x")
        assert not readable(ring)
        assert go(ring) == []
        assert kept.recv(8) == b"x"


def test_a_cancel_ends_one_interest_and_leaves_the_other(ring, pair):
    a, b = pair
    fill(a)
    reading = submit(ring, Opcode.RECV, a.fileno(), bytearray(8))
    polling = submit(ring, Opcode.POLL_ADD, a.fileno(), flags=select.POLLIN)
    writing = submit(ring, Opcode.SEND, a.fileno(), b"more")
    go(ring)
    ring.cancel(reading)
    assert go(ring) == [reading]
    ring.cancel(polling)
    assert go(ring) == [polling]
    b.send(b"nobody reads")
    assert not readable(ring)
    empty(b)
    assert go(ring) == [writing]
    assert writing.res == 4


def test_what_is_cancelled_before_it_is_flushed_does_nothing(ring, pair):
    op = submit(ring, Opcode.SEND, pair[0].fileno(), b"x")
    ring.cancel(op)
    assert go(ring) == [op]
    assert op.res == -errno.ECANCELED
    submit(ring, Opcode.SEND, pair[0].fileno(), b"y")
    go(ring)
    assert pair[1].recv(8) == b"y"


def test_done_before_it_was_cancelled_it_keeps_its_result(ring, pair):
    op = submit(ring, Opcode.SEND, pair[0].fileno(), b"x")
    ring.flush()
    ring.cancel(op)
    assert go(ring) == [op]
    assert op.res == 1


def test_bad_descriptors(ring):
    ops = [submit(ring, opcode, -1, b"x" if opcode == Opcode.SEND else None) for opcode in (Opcode.SEND, Opcode.ACCEPT)]
    ops.append(submit(ring, Opcode.POLL_ADD, 999, flags=select.POLLIN))
    go(ring)
    assert [op.res for op in ops] == [-errno.EBADF] * 3


# -- pipes and files


def test_a_pipe_never_blocks_the_thread(ring, pipe):
    reading, writing = pipe
    data = bytes(range(256)) * 1024  # four times what a pipe holds
    sent = received = b""
    receiving = submit(ring, Opcode.READ, reading, into := bytearray(100_000), offset=CURRENT)
    assert go(ring) == []
    while len(received) < len(data):
        sending = submit(ring, Opcode.WRITE, writing, data[len(sent) :], offset=CURRENT) if len(sent) < len(data) else None
        done = go(ring)
        if sending and sending not in done:
            ring.cancel(sending)
            done += go(ring)
        if sending and sending.res > 0:
            sent += data[len(sent) :][: sending.res]
        if receiving in done:
            received += into[: receiving.res]
            receiving = submit(ring, Opcode.READ, reading, into := bytearray(100_000), offset=CURRENT)
    assert received == data


@pytest.mark.parametrize("opcode", [Opcode.WRITE, Opcode.WRITEV])
def test_a_full_pipe_is_waited_for(ring, pipe, opcode):
    reading, writing = pipe
    data, count, writes = bytes(2 * 4096), 0, []
    while True:
        op = Operation(opcode, writing)
        op.offset, op.length = CURRENT, len(data)
        op.buffer, op.buffers = (data, None) if opcode == Opcode.WRITE else (None, [b"", data])
        assert ring.submit(op)
        writes.append(op)
        if not go(ring):
            break
        count += op.res
    assert count == 65536
    assert len(os.read(reading, 5000)) == 5000
    assert go(ring) == [writes[-1]]
    assert writes[-1].res == 4096  # the page that is free


def test_a_terminal_is_read_and_written_though_it_knows_no_nowait(ring):
    master, slave = os.openpty()
    reading = submit(ring, Opcode.READ, slave, into := bytearray(100), offset=CURRENT)
    assert go(ring) == []
    writing = submit(ring, Opcode.WRITE, master, b"line\n", offset=CURRENT)
    done = go(ring)
    while len(done) < 2:  # the kernel hands it over in a thread of its own
        ring.wait(60)
        done += go(ring)
    assert writing.res == 5
    assert bytes(into[: reading.res]) == b"line\n"
    os.close(master)
    os.close(slave)


def test_what_epoll_refuses_is_done_at_once(ring, tmp_path):
    with open(tmp_path / "file", "w+b", buffering=0) as file, open(os.devnull, "r+b", buffering=0) as null:
        written = submit(ring, Opcode.WRITE, file.fileno(), b"abcdef", offset=CURRENT)
        dropped = submit(ring, Opcode.WRITE, null.fileno(), b"abcdef", offset=CURRENT)
        nothing = submit(ring, Opcode.READ, null.fileno(), bytearray(8), offset=CURRENT)
        there = submit(ring, Opcode.READ, file.fileno(), into := bytearray(8), offset=2)
        ready = submit(ring, Opcode.POLL_ADD, file.fileno(), flags=select.POLLIN)
        go(ring)
    assert [op.res for op in (written, dropped, nothing, there)] == [6, 6, 0, 4]
    assert into[:4] == b"cdef"
    assert ready.res == select.POLLIN


def test_a_read_that_would_wait_for_a_disk_is_made_blocking(ring, tmp_path, monkeypatch):
    """The page is not in memory: the kernel says EAGAIN to a read that must not wait, and epoll refuses the file."""
    flags_seen = []

    def tu_attempt(entry, address, length, flags):
        flags_seen.append(flags)
        return _calls._NOT_READY if flags == 0 else real(entry, address, length, flags)

    real = _calls._tu_attempt
    monkeypatch.setattr(_calls, "_tu_attempt", tu_attempt)
    (tmp_path / "file").write_bytes(b"abc")
    with open(tmp_path / "file", "rb", buffering=0) as file:
        op = submit(ring, Opcode.READ, file.fileno(), into := bytearray(8), offset=0)
        go(ring)
    assert (op.res, into[:3], flags_seen) == (3, b"abc", [0, _poll_ring._MAY_BLOCK])


@pytest.mark.parametrize(
    ("group", "length", "most"), [(SMALL_GROUP, 2**30, SMALL_SIZE), (LARGE_GROUP, 2**30, LARGE_SIZE), (SMALL_GROUP, 3, 3)]
)
def test_a_group_gives_what_its_buffers_hold(ring, pair, group, length, most):
    a, b = pair
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    sent = os.urandom(LARGE_SIZE + 1)
    op = submit(ring, Opcode.RECV, b.fileno(), group=group, length=length)
    assert go(ring) == []
    assert a.send(sent) == len(sent)
    assert go(ring) == [op]
    assert (op.res, op.chunk) == (most, sent[:most])


# -- connections


def test_connect_is_waited_for_and_leaves_the_mode_of_the_socket(ring):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        address = packed(server)
        accepting = submit(ring, Opcode.ACCEPT, server.fileno(), flags=socket.SOCK_CLOEXEC)
        assert go(ring) == []
        connecting = submit(ring, Opcode.CONNECT, client.fileno(), address, length=0, offset=len(address))
        done = go(ring)
        while len(done) < 2:
            ring.wait(60)
            done += go(ring)
        assert connecting.res == 0
        assert accepting.res >= 0
        assert os.get_blocking(client.fileno())
        assert os.get_blocking(server.fileno())
        assert not os.get_inheritable(accepting.res)
        os.close(accepting.res)


def test_connect_is_refused(ring):
    with socket.socket() as bound, socket.socket() as client:
        bound.bind(("127.0.0.1", 0))
        address = packed(bound)
        op = submit(ring, Opcode.CONNECT, client.fileno(), address, length=0, offset=len(address))
        while not go(ring):
            ring.wait(60)
        assert op.res == -errno.ECONNREFUSED


def packed(sock: socket.socket) -> bytes:
    host, port = sock.getsockname()
    return socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def test_a_full_backlog_of_a_unix_socket_is_told_and_not_waited_for(ring):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")  # a name of the kernel's choice
        server.listen(0)
        address = socket.AF_UNIX.to_bytes(2, "little") + server.getsockname()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        ops = [submit(ring, Opcode.CONNECT, sock.fileno(), address, length=0, offset=len(address)) for sock in clients]
        go(ring)
        assert [op.res for op in ops] == [0, -errno.EAGAIN, -errno.EAGAIN]
        for sock in clients:
            sock.close()


def test_an_opcode_that_is_no_system_call_is_refused(ring, pair):
    op = submit(ring, 0, pair[0].fileno())
    go(ring)
    assert op.res == -errno.EOPNOTSUPP


# -- its owner, its end


def test_a_forked_child_leaves_the_parents_waits_alone(ring, pair):
    a, b = pair
    op = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
    go(ring)
    child = os.fork()
    if not child:
        status = 1
        try:
            ring.flush()
        except RuntimeError as exc:
            status = 0 if "forked" in str(exc) and not _poll_ring._open_rings else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    a.send(b"x")
    assert readable(ring)
    assert go(ring) == [op]


def test_another_thread_is_refused(ring):
    errors = []

    def use() -> None:
        for method in (ring.flush, lambda: ring.drain([]), lambda: ring.wait(0), ring.close):
            with pytest.raises(RuntimeError, match="another thread") as caught:
                method()
            errors.append(caught)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 4


def test_a_closed_ring_is_refused_and_leaves_nothing():
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ring = PollRing()
        assert ring.close()
        assert ring.close()
    with pytest.raises(RuntimeError, match="closed"):
        ring.flush()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not _poll_ring._open_rings


@pytest.mark.parametrize("step", ["flush", "drain"])
def test_an_epoll_instance_that_was_closed_breaks_the_ring(step, pair):
    ring = PollRing()
    a, b = pair
    waiting = submit(ring, Opcode.RECV, b.fileno(), bytearray(8))
    go(ring)
    os.close(ring.fileno())
    if step == "flush":
        submit(ring, Opcode.SEND, a.fileno(), b"x")
    with pytest.raises(RingBrokenError, match="epoll instance"):
        ring.flush() if step == "flush" else ring.drain([])
    os.dup2(ring._event, ring.fileno())  # something to close again
    assert waiting.pin is not None
    ring.table.clear()
    assert ring.close()


def test_an_errno_of_epoll_ctl_is_the_operations_result(ring, pair, monkeypatch):
    def modify(fd, mask):
        if fd == pair[1].fileno():
            raise OSError(errno.ENOSPC, "as fs.epoll.max_user_watches has it")
        real(fd, mask)

    real = ring._modify
    monkeypatch.setattr(ring, "_modify", modify)
    op = submit(ring, Opcode.RECV, pair[1].fileno(), bytearray(8))
    assert go(ring) == [op]
    assert op.res == -errno.ENOSPC


@pytest.mark.parametrize(("name", "where"), [("epoll", select), ("eventfd", os)])
def test_without_descriptors_it_says_why(monkeypatch, name, where):
    def refuse(*_):
        raise OSError(errno.EMFILE, "as RLIMIT_NOFILE has it")

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(where, name, refuse)
    with pytest.raises(RingUnavailableError, match="RLIMIT_NOFILE"):
        PollRing()
    assert sorted(os.listdir("/proc/self/fd")) == before
