"""The layers: which package may import which, no cycles, and little use of others' private names.

Rules of this file: modules are read as text, not imported. docs/design.md has the same packages in
the same order; a test compares.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

import trio_uring

PACKAGE = pathlib.Path(trio_uring.__file__).parent

# From the bottom up. What a module imports of another package stands above it in this list.
ROOMS = [
    {"_accelerator", "_errors", "_options", "_trio", "metrics"},  # leaves
    {"audit"},
    {"_bytes"},
    {"framing"},
    {"_ring"},
    {"_driver"},
    {"_descriptors"},
    {"_sockets"},
    {"_streams", "socket"},
    {"_messages", "_udp"},
    {"_network", "_serving"},
    {"_relay", "_observe", "prometheus"},
    {"_workers", "testing"},
    {"__init__"},
    {"pytest_plugin"},
    {"_demo", "_cli", "_bench"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}

# The wing that knows no ring, not even by way of something else. Its networks of sockets are where
# the two wings meet.
WITHOUT_RING = {"_bytes", "_messages", "_network", "_observe", "framing", "metrics", "audit"}
MEETING = "_network.sockets"
RING_WING = {"_ring", "_driver", "_descriptors", "_sockets", "_streams", "_udp", "_relay"}

# Uses of another object's `_private` names. The ratchet: fewer is a reason to lower it.
FOREIGN_MAX = 21
DEPTH_MAX = 15  # of imports, file by file
ROOM_DEPTH_MAX = 11  # of imports, room by room


def name_of(path: pathlib.Path) -> str:
    """As the table has it: dotted, below trio_uring."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name if name == "__init__" else name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if "_c" not in path.parts}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def room(name: str) -> str:
    return name.partition(".")[0]


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All of it, but what is there for a type checker only."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING"):
            yield child
            yield from at_run_time(child)


def imported(name: str, types: bool = True) -> set[str]:
    """The modules of this package that a module imports."""
    here = MODULES[name].relative_to(PACKAGE).parts[:-1]
    names: set[str] = set()
    for node in ast.walk(TREES[name]) if types else at_run_time(TREES[name]):
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


GRAPH = {name: imported(name) & MODULES.keys() for name in MODULES}


def depth_of(graph: dict[str, set[str]]) -> dict[str, int]:
    """How many imports lie one below the other. Raises AssertionError for a circle."""
    found: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> int:
        assert name not in path, f"a circle: {' -> '.join([*path, name])}"
        if name not in found:
            below = [visit(other, (*path, name)) for other in sorted(graph[name] - {name})]
            found[name] = 1 + max(below, default=0)
        return found[name]

    for name in sorted(graph):
        visit(name, ())
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    mine = room(name)
    assert mine in RANK, "a package without a place: give it one here and in docs/design.md"
    others = {other for other in GRAPH[name] if room(other) != mine}
    assert not {other for other in others if RANK[room(other)] >= RANK[mine]}
    if name == mine and "." not in name and MODULES[name].name == "__init__.py":
        assert name == "__init__" or not GRAPH[name]  # a package says what it is


def test_there_is_no_circle_and_the_house_is_not_too_high() -> None:
    whole = {name: others - {"__init__"} for name, others in GRAPH.items() if name != "__init__"}
    assert max(depth_of(whole).values()) <= DEPTH_MAX
    rooms: dict[str, set[str]] = {room(name): set() for name in whole}
    for name, others in whole.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name)}
    assert max(depth_of(rooms).values()) <= ROOM_DEPTH_MAX


def foreign_uses(name: str) -> list[str]:
    """Where a module uses a private name of an object that is not its own."""
    return [
        f"{name}: {ast.unparse(node)}"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        and not (isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super")
    ]


def test_few_look_into_the_rooms_of_others() -> None:
    # `_trio` is the one place for trio's own, which it lists.
    found = [use for name in MODULES if name != "_trio" for use in foreign_uses(name)]
    assert len(found) <= FOREIGN_MAX, "\n".join(found)


def test_only_rings_touch_ffi() -> None:
    assert [name for name in MODULES if "_uring" in imported(name)] == ["_ring.extension"]
    touching = [name for name in MODULES if "_ring.extension" in imported(name)]
    assert set(touching) == {"_ring.entries", "_ring.setup", "_ring.uring", "_driver.trial"}


@pytest.mark.parametrize(
    "name",
    [
        "_ring.opcodes",
        "_ring.op",
        "_ring.figures",
        "_ring.protocol",
        "_ring.statistics",
        "_bytes.chunks",
        "framing",
    ],
)
def test_leaves_import_nothing_of_trio(name: str) -> None:
    assert "import trio\n" not in MODULES[name].read_text()


def reached(name: str) -> set[str]:
    """All modules that are imported at run time when a module is: its own imports, and theirs."""
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        new = set().union(*[imported(each, types=False) for each in new if each in MODULES]) - found
    return found - {name}


@pytest.mark.parametrize(
    "name", [n for n in MODULES if n.split(".")[0] in WITHOUT_RING and n != MEETING]
)
def test_what_needs_no_ring_reaches_none(name: str) -> None:
    assert [other for other in reached(name) if other.split(".")[0] in RING_WING] == []


def test_the_networks_on_sockets_meet_the_ring() -> None:
    """Else the test above would prove nothing."""
    assert {room(other) for other in reached(MEETING)} >= {"_ring", "_driver", "_streams"}


def test_importing_the_package_opens_nothing() -> None:
    assert not trio_uring._ring.base.open_rings


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
