"""Imports point down: the layers of docs/design.md, checked.

Rules of this file: modules are read as text, not imported.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

import trio_uring

PACKAGE = pathlib.Path(trio_uring.__file__).parent
LAYERS = [
    {
        "_ring.op",
        "_errors",
        "_bytes.chunks",
        "_bytes.pool",
        "_bytes.abilities",
        "_bytes.cork",
        "_bytes.views",
        "_driver.pipes",
        "_trio",
        "metrics",
    },
    {
        "_ring.protocol",
        "_ring.extension",
        "_relay.file_part",
        "_bytes.outgoing",
        "_bytes.timed",
        "framing",
        "audit",
    },
    {"_ring.statistics", "_ring.entries", "_udp.messages"},
    {"_ring.uring", "_driver.readiness"},
    {"_driver.trial"},
    {"_driver.backend"},
    {"_driver.engine"},
    {"_driver.chains"},
    {"_driver.loop", "_driver.task_way"},
    {"_driver.run"},
    {"_descriptors.lease", "_descriptors.provided"},
    {"_sockets.operations"},
    {"_sockets.uring_socket"},
    {"_streams.endpoint", "_streams.split"},
    {"_streams.send", "_streams.receive"},
    {"_relay.pump"},
    {"_relay.stream_pump"},
    {"_streams.streams", "_udp.receive", "_udp.send"},
    {"_streams.listeners", "_streams.stdio", "_streams.processes", "_udp.udp_socket"},
    {"_streams.tcp", "_streams.enable", "socket"},
    {"_streams.tls", "_streams.unix"},
    {"_messages.vectored", "_messages.buffered"},
    {"_messages.frames", "_network.network"},
    {"_relay.loop_sink"},
    {"_relay.copy", "_relay.send_file"},
    {
        "_messages.frame_stream",
        "_network.sockets",
        "_network.link",
        "_network.deterministic",
        "_observe.observer",
    },
    {"_network.transport", "_observe.streams"},
    {"_network.hosts", "_observe.networks"},
    {"_network.simulated"},
    {"testing"},
    {"__init__"},
    {"prometheus", "pytest_plugin"},
    {"_demo.files", "_cli.info"},
    {"_demo.server", "_demo.report"},
    {"_demo.demo"},
    {"__main__"},
]
# A way to wait and what uses it know each other's types, and nothing else of each other.
TYPES_ONLY = {
    "_driver.readiness": {"_driver.backend", "_driver.engine"},
    "_driver.engine": {"_driver.task_way"},
    "_driver.loop": {"_driver.run"},
    "_driver.task_way": {"_driver.run"},
}
PACKAGE_ITSELF = {"_cli.info", "__main__", "pytest_plugin"}  # they want its public names
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All of it, but what is there for a type checker only."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING"):
            yield child
            yield from at_run_time(child)


def name_of(path: pathlib.Path) -> str:
    """As the table has it: dotted, below trio_uring."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name if name == "__init__" else name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if "_c" not in path.parts}


def imported(name: str, types: bool = True) -> set[str]:
    """The modules of this package that a module imports."""
    path = MODULES[name]
    here = path.relative_to(PACKAGE).parts[:-1]
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if types else at_run_time(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[: len(here) + 1 - node.level], *filter(None, [node.module])]
            within = {".".join([*base, alias.name]) for alias in node.names}
            names |= within & MODULES.keys() or {".".join(base) or "__init__"}
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("trio_uring.")
        ):
            names.add(node.module.removeprefix("trio_uring."))
    return names


@pytest.mark.parametrize("name", MODULES)
def test_every_import_points_down(name):
    if (
        name.startswith("_")
        and "." not in name
        and name in {other.split(".")[0] for other in MODULES if "." in other}
    ):
        assert not imported(name)  # a package says what it is, and imports nothing
        return
    assert name in RANK, "a module without a layer: give it one here and in docs/design.md"
    above = {other for other in imported(name) if other in RANK and RANK[other] >= RANK[name]}
    above -= {"__init__"} if name in PACKAGE_ITSELF else set()
    assert above == TYPES_ONLY.get(name, set())
    assert not above & imported(name, types=False)


def test_only_rings_touch_ffi():
    assert [name for name in MODULES if "_uring" in imported(name)] == ["_ring.extension"]
    touching = [name for name in MODULES if "_ring.extension" in imported(name)]
    assert set(touching) == {"_ring.entries", "_ring.uring", "_driver.trial"}


@pytest.mark.parametrize(
    "name", ["_ring.op", "_ring.protocol", "_ring.statistics", "_bytes.chunks", "framing"]
)
def test_leaves_import_nothing_of_trio(name):
    assert "import trio\n" not in MODULES[name].read_text()


# These reach no package where a ring is known, whatever they import: they work over any stream.
RINGLESS = ("_bytes", "_messages", "_network", "_observe", "framing", "audit", "metrics")
RINGS = {"_ring", "_driver", "_descriptors", "_sockets", "_streams", "_udp", "_relay"}
MEETING = {"_network.sockets"}  # UringNetwork, and TrioNetwork beside it


def reached(name: str) -> set[str]:
    """All modules that are imported at run time when a module is: its own imports, and theirs."""
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        new = set().union(*[imported(each, types=False) for each in new if each in MODULES]) - found
    return found - {name}


@pytest.mark.parametrize(
    "name", [n for n in MODULES if n.split(".")[0] in RINGLESS and n not in MEETING]
)
def test_what_needs_no_ring_reaches_none(name):
    assert [other for other in reached(name) if other.split(".")[0] in RINGS] == []


def test_the_networks_on_sockets_meet_the_ring():
    """Else the test above would prove nothing."""
    for name in MEETING:
        assert {other.split(".")[0] for other in reached(name)} >= {"_ring", "_driver", "_streams"}


def test_importing_the_package_opens_nothing():
    assert not trio_uring._ring.uring._open_rings


def mapped() -> list[str]:
    """The entries of the map in docs/design.md, from the top: `package/`, `package/module` or
    `module`, each with a phrase."""
    text = (pathlib.Path(__file__).parents[1] / "docs" / "design.md").read_text()
    block = re.search(r"^## Layers$.*?^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block
    lines = [line.split(maxsplit=1) for line in block[1].splitlines() if line]
    assert all(len(line) == 2 for line in lines)
    return [entry for entry, _ in lines]


def test_the_map_has_every_module_and_no_other():
    packages = {name.split(".")[0] for name in MODULES if "." in name}
    names = [
        name.replace(".", "/") + "/" * (name in packages and "." not in name) for name in MODULES
    ]
    assert sorted(mapped()) == sorted(names)


def test_the_map_is_in_the_order_of_imports():
    place = {entry.split("/")[0]: number for number, entry in enumerate(mapped())}
    for name in MODULES:
        room = name.split(".")[0]
        others = {other.split(".")[0] for other in imported(name)} & place.keys() - {room}
        assert [other for other in others if place[other] < place[room]] == [], name
