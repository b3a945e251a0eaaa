"""One page for the metrics of all workers.

Rules of this file: the page is fetched over HTTP from a real supervisor, and read by
prometheus-client's own parser.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.workers import SECONDS_MAX, answer, pids, request, serving

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.metrics_core import Metric  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402

from trio_uring import Shutdown  # noqa: E402
from trio_uring._workers.channel import Channel, receive_message, send_message  # noqa: E402
from trio_uring._workers.child import _Supervised  # noqa: E402
from trio_uring._workers.series import Page, Series  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.no_ring
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="worker processes")

# A counter of its own, one of whose labels has the name of ours.
APP = """
import os, time
from prometheus_client import Counter, Gauge

answered = Counter("answered", "Messages.", ["worker", "kind"])
Gauge("odd", "Odd values.").set(float("inf"))

async def main(worker):
    async def handler(stream):
        async for chunk in stream:
            if chunk == b"block":  # trio's thread
                while not os.path.exists("go"):
                    time.sleep(0.01)
            answered.labels("mine", 'a"b').inc()
            await stream.send_all(f"{worker.number}\\n".encode())
    await worker.serve(handler)
"""


def samples(text: str) -> dict[tuple[str, str], list[tuple[dict[str, str], float]]]:
    """The labels and values of all samples, by name and worker. Each family is there once."""
    found: dict[Any, Any] = {}
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    for family in families:
        for sample in family.samples:
            key = (sample.name, sample.labels["worker"])
            found.setdefault(key, []).append((sample.labels, sample.value))
    return found


def fetch(port: int, *up: str) -> dict[tuple[str, str], list[tuple[dict[str, str], float]]]:
    """The page, once these workers have answered in time. A worker that gets no processor is one
    that does not answer."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            page = samples(answer.read().decode())
        if all(page["trio_uring_worker_up", number][0][1] == 1 for number in up):
            return page
        assert time.monotonic() < deadline, page


@on_linux
def test_the_page_has_all_workers_and_says_which_one_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "--metrics", "127.0.0.1:0") as (one, port):
        [line] = [each for each in one.lines if "metrics on" in each]
        page_port = int(line.rpartition(":")[2])
        before = pids(one)
        for _ in range(10):
            request(port)
        page = fetch(page_port, "0", "1")
        for number in ("0", "1"):
            assert page["trio_uring_worker_up", number][0][1] == 1
            assert page["trio_uring_worker_restarts_total", number][0][1] == 0
            assert page["python_info", number]
            assert page["trio_uring_driver_backend_info", number]
            assert page["odd", number][0][1] == float("inf")
        counted = [each for number in "01" for each in page.get(("answered_total", number), [])]
        assert sum(value for _, value in counted) == 10
        assert {(labels["exported_worker"], labels["kind"]) for labels, _ in counted} == {
            ("mine", 'a"b')
        }

        os.kill(before[1], signal.SIGSTOP)
        for _ in range(2):
            page = fetch(page_port, "0")
            assert [page["trio_uring_worker_up", number][0][1] for number in "01"] == [1, 0]
            assert ("python_info", "0") in page
            assert ("python_info", "1") not in page
        os.kill(before[1], signal.SIGCONT)
        page = fetch(page_port, "0", "1")
        assert page["trio_uring_worker_up", "1"][0][1] == 1

        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"block")
            while sum(page["trio_uring_worker_up", number][0][1] for number in "01") == 2:
                page = fetch(page_port)
            (tmp_path / "go").touch()
            answer(sock)

        os.kill(before[1], signal.SIGKILL)
        one.ready()
        page = fetch(page_port, "1")
        assert page["trio_uring_worker_restarts_total", "1"][0][1] == 1
        assert page["trio_uring_worker_up", "1"][0][1] == 1
        assert one.end(signal.SIGTERM) == 0


def test_families_of_different_programs_are_merged() -> None:
    """As during a rolling restart: another help, another type; and one without a family."""
    answers = {
        0: [["jobs", "Old help.", "counter", "", [["jobs_total", {}, 1.0]]]],
        1: [
            ["jobs", "New help.", "gauge", "", [["jobs_total", {"kind": "x"}, 2.0]]],
            ["trio_uring_worker_up", "Not ours.", "gauge", "", [["x", {}, 3.0]]],
            ["size_bytes", "Sizes.", "histogram", "bytes", [["size_bytes_sum", {}, 4.0]]],
        ],
        2: None,
    }
    text = Page(answers, {0: 5, 1: 0, 2: 7}).text().decode()
    page = samples(text)
    assert text.count("# HELP jobs_total ") == 1
    assert page["jobs_total", "0"] == [({"worker": "0"}, 1.0)]
    assert page["jobs_total", "1"] == [({"worker": "1", "kind": "x"}, 2.0)]
    assert page["size_bytes_sum", "1"][0][1] == 4
    assert [page["trio_uring_worker_up", number][0][1] for number in "012"] == [1, 1, 0]
    assert page["trio_uring_worker_restarts_total", "2"][0][1] == 7


async def test_a_driver_collector_of_the_program_is_not_repeated() -> None:
    from trio_uring.prometheus import DriverCollector

    collector = DriverCollector()
    prometheus_client.REGISTRY.register(collector)
    try:
        names = [family[0] for family in Series().read()]
    finally:
        prometheus_client.REGISTRY.unregister(collector)
    assert len(names) == len(set(names))
    assert "trio_uring_driver_enters" in names


class Broken(Collector):
    """A collector of a program, whose values are what prometheus-client itself takes."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def collect(self) -> Iterable[Metric]:
        family = Metric("odd", "Odd.", "gauge")
        family.add_sample("odd", {}, self._value)
        return [family]


async def test_a_value_may_be_any_number() -> None:
    collector = Broken(Decimal("1.5"))
    prometheus_client.REGISTRY.register(collector)
    try:
        [family] = [each for each in Series().read() if each[0] == "odd"]
    finally:
        prometheus_client.REGISTRY.unregister(collector)
    assert json.loads(json.dumps(family))[4] == [["odd", {}, 1.5]]


async def test_metrics_that_cannot_be_sent_do_not_end_the_thread_that_sends_them() -> None:
    """It is the one that notices that the supervisor is gone."""
    ours, theirs = socket.socketpair()
    supervised = _Supervised(Channel(theirs), Shutdown(grace=math.inf))
    supervised.answer = lambda: [object()]
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, supervised.obey)
        for _ in range(2):
            await send_message(stream, {"ask": "metrics"})
            assert await receive_message(stream) == {"metrics": None}
        await stream.aclose()
    assert supervised.shutdown.started
    theirs.close()
