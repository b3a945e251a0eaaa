"""trio's own tests with our sockets and streams, on the default ring; and the judge of their
results.

`python -m tests.trio_suite` runs all of them.

Rules of this file: the judge is tested on runs made by hand, each with one defect.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from trio_suite import judge, runs
from trio_suite.runs import BACKENDS, MEASURES, STOCK, Result, Run, run, why_not_uring

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.no_ring

PASSED, FAILED, SKIPPED = Result("passed"), Result("failed", failure="assert 0"), Result("skipped")
OURS = Result(
    "passed", objects={"UringSocket": 2, "SocketStream": 1}, operations=5, backends=["uring"]
)
IDLE = Result("passed", objects={"UringSocket": 1})
OPERATIONS = Result("passed", operations=5, backends=["uring"])
STREAM = Result("passed", objects={"SocketListener": 1}, backends=["uring"])
UNDRIVEN = dataclasses.replace(OURS, backends=[])
BASE = {
    "test_a::one": PASSED,
    "test_a::two[x]": PASSED,
    "test_b::one": PASSED,
    "test_b::windows": SKIPPED,
}
GOOD = {
    "test_a::one": OURS,
    "test_a::two[x]": IDLE,
    "test_b::one": PASSED,
    "test_b::windows": SKIPPED,
}
FLOORS = {
    "driven": {"test_a": 1, "test_b": 0},
    "used_ours": {"test_a": 2, "test_b": 0},
    "made_streams": {"test_a": 1},
    "submitted": {"test_a": 1, "test_b": 0},
}


def made(
    results: Mapping[str, Result],
    mode: str = "sockets",
    backend: str | None = "uring",
    **changed: Any,
) -> Run:
    return dataclasses.replace(
        Run(mode, backend, results, 0, 1.0, "what pytest printed"), **changed
    )


def judged(run: Run, *, stock: Run | None = None, whole: bool = True) -> str:
    floors: judge.Floors = {measure: {run.name: floors} for measure, floors in FLOORS.items()}
    return "\n".join(judge.complaints(stock or made(BASE, STOCK, None), run, floors, whole=whole))


# -- the judge


def test_a_run_as_good_as_stock_trio() -> None:
    assert judged(made(GOOD)) == ""
    assert {measure: made(GOOD).counts(measure) for measure in MEASURES} == {
        **FLOORS,
        "made_streams": {"test_a": 1, "test_b": 0},
    }


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ({"test_b::one": FAILED}, "test_b::one passes on stock trio: here it failed\nassert 0"),
        ({"test_b::one": SKIPPED}, "test_b::one passes on stock trio: here it was skipped"),
        (
            {"test_b::one": dataclasses.replace(PASSED, faults=["2 lost"])},
            "test_b::one passes on stock trio: 2 lost",
        ),
        ({"test_a::two[x]": PASSED}, "used_ours: 1 tests of test_a; they must not be fewer than 2"),
        (
            {"test_a::one": UNDRIVEN, "test_b::one": OURS},
            "driven: 0 tests of test_a; they must not be fewer than 1",
        ),
        (
            {"test_a::one": OPERATIONS},
            "made_streams: 0 tests of test_a; they must not be fewer than 1",
        ),
        (
            {"test_a::one": STREAM, "test_b::one": OURS},
            "submitted: 0 tests of test_a; they must not be fewer than 1",
        ),
        (
            {"test_a::two[x]": dataclasses.replace(OURS, backends=["readiness"])},
            "it ran on readiness, uring, not on uring",
        ),
    ],
)
def test_what_is_not_as_good(results: Mapping[str, Result], complaint: str) -> None:
    assert judged(made({**GOOD, **results})) == complaint


def test_a_test_that_was_not_run_and_a_descriptor_left_open() -> None:
    some = {test: result for test, result in GOOD.items() if test != "test_b::one"}
    assert judged(made(some)) == "test_b::one passes on stock trio: here it was not run"
    assert judged(made(GOOD, descriptors=1)).startswith("1 more descriptors are open")
    assert judged(made(GOOD, descriptors=1), stock=made(BASE, STOCK, None, descriptors=1)) == ""


def test_what_fails_or_skips_on_stock_trio_need_not_pass() -> None:
    stock = made({**BASE, "test_b::one": FAILED}, STOCK, None)
    assert (
        judged(made({**GOOD, "test_b::one": FAILED, "test_b::windows": FAILED}), stock=stock) == ""
    )


def test_a_part_is_not_held_to_the_floors() -> None:
    one = made({"test_a::one": PASSED})
    assert judged(one, stock=made({"test_a::one": PASSED}, STOCK, None), whole=False) == ""
    on_epoll = made({"test_a::one": OURS}, backend="readiness")
    stock = made({"test_a::one": PASSED}, STOCK, None)
    assert judged(on_epoll, stock=stock, whole=False) == "it ran on uring, not on readiness"


def test_a_run_that_did_not_end_or_ran_nothing_cannot_be_judged() -> None:
    assert (
        judged(made(GOOD, descriptors=None))
        == "sockets/uring did not come to its end after 4 tests:\nwhat pytest printed"
    )
    assert judged(made({})) == "sockets/uring: no test has passed:\nwhat pytest printed"
    assert (
        judged(made(GOOD), stock=made({}, STOCK, None))
        == "stock: no test has passed:\nwhat pytest printed"
    )


def test_a_run_on_no_ring() -> None:
    no_ring = judged(made({**GOOD, "test_a::one": UNDRIVEN}))
    assert no_ring.startswith("it ran on no ring, not on uring\ndriven: 0 tests of test_a")


def test_floors_are_raised_to_the_lowest_of_several_runs() -> None:
    floors: judge.Floors = {
        measure: {"streams/uring": {"test_a": 9, "test_c": 1}} for measure in MEASURES
    }
    first, second = made(GOOD), made({**GOOD, "test_a::two[x]": PASSED, "test_b::one": OURS})
    raised = judge.raised(floors, [first, second])
    assert {measure: names["sockets/uring"] for measure, names in raised.items()} == {
        "driven": {"test_a": 1},
        "used_ours": {"test_a": 1},
        "made_streams": {"test_a": 1},
        "submitted": {"test_a": 1},
    }
    assert {
        measure: judge.floor(raised, measure, "streams/uring") for measure in MEASURES
    } == dict.fromkeys(MEASURES, 10)


# -- a run


def child(program: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    """A run whose child process is `program`, with `file` to write to."""
    (folder / "child.py").write_text(
        f"import json, os, sys, time\nfile = open(sys.argv[2], 'w')\n{program}"
    )
    monkeypatch.setattr(runs, "CHILD", folder / "child.py")
    return run("streams", "readiness", ["more"])


RECORDS = """
one = dict(test="test_a::one", outcome="passed", seconds=0.5, operations=3)
file.write(json.dumps(one) + "\\n")
file.write(json.dumps(dict(descriptors=2)) + "\\n")
file.close()
"""


@pytest.mark.parametrize(("status", "descriptors"), [(0, 2), (1, 2), (2, None), (-11, None)])
def test_what_a_child_writes_counts_if_it_ran_all_tests(
    status: int, descriptors: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    end = f"sys.exit({status})" if status >= 0 else f"os.kill(os.getpid(), {-status})"
    done = child(
        f"{RECORDS}\n"
        "print(sys.argv[1], os.environ['TRIO_URING_BACKEND'], *sys.argv[3:], flush=True)\n"
        f"{end}",
        monkeypatch,
        tmp_path,
    )
    assert done.results == {"test_a::one": Result("passed", seconds=0.5, operations=3)}
    assert (done.name, done.output, done.descriptors) == (
        "streams/readiness",
        "streams readiness more\n",
        descriptors,
    )


@pytest.mark.parametrize("program", ["", "file.write('{\"test\"')"])
def test_a_child_that_writes_nothing_or_half(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = child(f"print('begun', flush=True)\n{program}", monkeypatch, tmp_path)
    assert (done.output, done.descriptors, done.results) == ("begun\n", None, {})


def test_a_child_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its time begins here when it hangs: a machine that is busy starts it late."""
    hangs = tmp_path / "hangs"

    def communicate(process: subprocess.Popen[str], *arguments: Any, timeout: float) -> Any:
        assert timeout == runs.SECONDS_MAX
        while not hangs.exists():
            time.sleep(0.01)
        return wait(process, *arguments, timeout=3)

    wait = subprocess.Popen.communicate
    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    done = child(
        f"print('begun', flush=True)\nopen({str(hangs)!r}, 'w').close()\ntime.sleep(1000)",
        monkeypatch,
        tmp_path,
    )
    assert (done.output, done.descriptors, done.results) == ("begun\n", None, {})


AGAIN = """
only = json.loads(os.environ.get("TRIO_SUITE_TESTS", "[]"))
for name, outcome in (("one", "passed"), ("two", "failed"), ("three", "failed")):
    if only and f"test_a::{name}" not in only:
        continue
    waited = 0.0 if name == "two" else 9.9
    outcome = "passed" if os.environ["HELPS"] == "1" and only else outcome
    one = dict(test=f"test_a::{name}", outcome=outcome, operations=1 + len(only), waited=waited)
    file.write(json.dumps(one) + "\\n")
file.write(json.dumps(dict(descriptors=len(only))) + "\\n")
file.close()
print(only, flush=True)
"""


@pytest.mark.parametrize("helps", [True, False])
def test_what_failed_without_a_processor_is_run_again_and_nothing_else(
    helps: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HELPS", str(int(helps)))
    done = child(AGAIN, monkeypatch, tmp_path)
    assert {test: result.outcome for test, result in done.results.items()} == {
        "test_a::one": "passed",
        "test_a::two": "failed",
        "test_a::three": "passed" if helps else "failed",
    }
    assert [result.operations for result in done.results.values()] == [1, 1, 2]
    assert (done.output, done.descriptors) == ("[]\n", 0)


# -- trio's tests


@pytest.mark.skipif(
    os.environ.get("TRIO_URING_DRIVER") == "task",
    reason="trio's tests count tasks and instruments, and that driver has some of its own",
)
@pytest.mark.hang_seconds(2 * runs.SECONDS_MAX)
@pytest.mark.long
@pytest.mark.parametrize("mode", ["streams", "sockets"])
def test_trio_passes_its_own_tests_with_ours(mode: str) -> None:
    backend = os.environ.get("TRIO_URING_BACKEND", "")
    if backend not in BACKENDS:
        backend = "readiness" if why_not_uring() else "uring"
    with ThreadPoolExecutor() as threads:  # half of the time they sleep
        stock, ours = threads.submit(run, STOCK), threads.submit(run, mode, backend)
        assert not judge.complaints(stock.result(), ours.result(), judge.load())
