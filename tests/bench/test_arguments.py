"""What can be asked for: arguments, names of workloads, peers.

Rules of this file: nothing is measured.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import no_ring

from trio_uring import __main__
from trio_uring._bench import command, peers
from trio_uring._bench.kinds import KINDS
from trio_uring._bench.options import plan_of, workloads_of
from trio_uring._bench.peers import PEERS, choose
from trio_uring._bench.targets import TARGETS
from trio_uring._bench.workloads import GROUPS, Server, expand, parse

pytestmark = pytest.mark.no_ring


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "nobody"], "nobody"),
        (["--workloads", "50by1K"], "'50by1K' is no workload"),
        (["--workloads", "0x1K"], "from 1 to 20000 connections"),
        (["--workloads", "99999x1K"], "from 1 to 20000 connections"),
        (["--workloads", "1x0"], "messages from 1 byte"),
        (["--workloads", "1x65M"], "messages from 1 byte"),
        (["--workloads", "list0-1x64"], "lists from 1"),
        (["--workloads", "udp-1x65508"], "more than a socket's buffer"),
        (["--workloads", "udp-500x64"], "more than a socket's buffer"),
        (["--workloads", "websockets-1x64K"], "messages of at most 65535 bytes"),
        (["--workloads", "send-frame-1x64M"], "answers of at most 64M"),
        (["--workloads", "list-1x64"], "'list-1x64' is no workload"),
        (["--workloads", "startup-1x64"], "'startup-1x64' is no workload"),
        (["--rounds", "0"], "from 1 to 1000"),
        (["--rounds", "many"], "from 1 to 1000"),
        (["--seconds", "long"], "from 0.05 to 600 seconds"),
        (["--seconds", "0.01"], "from 0.05 to 600 seconds"),
        (["--seconds", "nan"], "from 0.05 to 600 seconds"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(["bench", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_is_asked_for_by_default_and_in_a_hurry() -> None:
    parser = __main__.make_parser(["bench"])
    whole, quick = (parser.parse_args(["bench", *more]) for more in ([], ["--quick"]))
    assert tuple(workloads_of(whole)) == GROUPS["default"]
    assert tuple(workloads_of(quick)) == GROUPS["quick"]
    assert plan_of(quick).rounds < plan_of(whole).rounds
    chosen = parser.parse_args(
        ["bench", "--quick", "--rounds", "9", "--seconds", "2", "--seed", "5"]
    )
    plan = plan_of(chosen)
    assert (plan.rounds, plan.seconds, plan.seed) == (9, 2.0, 5)


def test_a_run_can_be_repeated_by_the_command_that_it_reports() -> None:
    arguments = __main__.make_parser(["bench"]).parse_args(["bench", "--quick"])
    plan = plan_of(arguments)
    line = command.command_line(arguments, plan, ["trio", "c"])
    again = __main__.make_parser(["bench"]).parse_args(line.split()[3:])
    assert plan_of(again) == plan
    assert again.peers == ["trio", "c"]
    assert workloads_of(again) == workloads_of(arguments)


def test_names_of_workloads() -> None:
    assert parse("50x1K").load_arguments() == [
        "mode", "0", "connections", "50", "bytes", "1024", "depth", "1",
    ]  # fmt: skip
    answers = parse("list16-4x64")
    assert answers.server == Server("list", 16, 64)
    assert answers.load_arguments()[-2:] == ["reply", "1024"]
    assert parse("pipelined-2x1M").load_arguments()[-1] == "16"
    assert parse("in-1x64K").unit == "MiB"
    assert parse("1x1K").one_core
    assert not parse("out-1x64K").one_core
    assert (parse("scopes-1x64").server.mode, parse("connect-1x64").server.mode) == (
        "scopes",
        "echo",
    )
    frames = parse("send-frame-16x4K")
    assert frames.server == Server("send-frame", 256, 4096)
    assert frames.load_arguments() == [
        "mode", "0", "connections", "16", "bytes", "1", "depth", "1", "reply", str(256 * 4100),
    ]  # fmt: skip
    assert (frames.unit, frames.batch, frames.paced) == ("frame", 256, False)
    assert parse("send-many-1x1M").server == Server("send-many", 4, 1 << 20)
    assert parse("relay-50x1K").load_arguments()[-2:] == ["paired", "1"]
    assert parse("relay-bulk-1x1M").server == parse("relay-50x1K").server == Server("relay")
    file = parse("send-file-1x16M")
    assert (file.server, file.unit) == (Server("send-file", 1, 16 << 20), "MiB")
    assert file.load_arguments()[5::4] == ["1", str(16 << 20)]
    assert parse("udp-50x64").load_arguments()[-2:] == ["datagrams", "1"]
    assert parse("udp-many-50x64").server == Server("udp-many")
    assert parse("hypercorn-64x5").load_arguments()[-2:] == ["http", "1"]
    assert parse("hypercorn-64x5").server == Server("hypercorn", 1, 5)
    assert parse("websockets-64x100").load_arguments()[-2:] == ["websocket", "1"]
    assert parse("cancel-100").server == Server("cancel", 100)
    assert parse("idle-10000").connections == 10_000
    assert [each.name for each in expand(["1x1", "quick", "1x1K"])] == ["1x1", *GROUPS["quick"]]


def test_every_group_can_be_measured() -> None:
    for names in GROUPS.values():
        assert [each.name for each in expand(list(names))] == list(dict.fromkeys(names))


class Asked(dict):  # type: ignore[type-arg]
    """Results that keep which workloads a target wants."""

    def __missing__(self, name):
        self[name] = {"ring": {}, "readiness": {}, "python": {}, "trio": {}, "uvloop": {}, "c": {}}
        return self[name]


def test_the_judged_group_is_all_that_the_targets_need() -> None:
    asked = Asked()
    for target in TARGETS:
        with pytest.raises(KeyError):
            target.figure(asked)
    assert {each.name for each in expand(["judged"])} == set(asked)


def test_everything_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    for name in (*GROUPS, *PEERS, *(kind for kind in KINDS if kind not in ("echo", "list"))):
        assert name in out


def test_reports_are_for_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["bench", "--reports", str(tmp_path / "none.json")]) == 2
    assert "for a --document" in capsys.readouterr().err
    words = ["--document", str(tmp_path / "x.md"), "--reports", str(tmp_path / "none.json")]
    assert __main__.main(["bench", *words]) == 2
    assert "none.json" in capsys.readouterr().err


def test_peers_that_are_not_installed_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "trio" else None)
    here, skipped = choose(["trio", "uvloop", "c", "trio"])
    assert [peer.name for peer in here] == ["trio", "c"]
    assert skipped == {"uvloop": "uvloop is not installed"}


def test_without_io_uring_only_readiness_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "open_uring", no_ring)
    here, skipped = choose(["ring", "readiness", "python", "trio"])
    assert [peer.name for peer in here] == ["readiness", "trio"]
    assert skipped == dict.fromkeys(
        ["ring", "python"], "io_uring_setup failed with EPERM: forbidden by a test"
    )


def test_commands_of_servers() -> None:
    floor = Path("floor")
    assert PEERS["c"].command(Server("echo"), floor) == ["floor"]
    words = PEERS["uvloop-protocol"].command(Server("list", 16, 64), floor)
    assert Path(words[1]).exists()
    assert words[2:] == ["uvloop", "protocol", "list", "16", "64"]
    assert "scopes" not in PEERS["asyncio"].modes


def test_elsewhere_it_says_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert __main__.main(["bench"]) == 2
    assert "only Linux" in capsys.readouterr().err
