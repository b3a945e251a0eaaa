"""Imports point down: the layers of docs/design.md, checked.

Rules of this file: modules are read as text, not imported.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

import trio_uring

PACKAGE = pathlib.Path(trio_uring.__file__).parent
LAYERS = [
    {"_op", "_errors", "_chunks", "_pool", "_timed", "_views", "_cork", "_pipes", "_trio", "metrics"},
    {"_contract", "_extension", "_file_part", "framing", "audit"},
    {"_statistics", "_entries", "_udp_messages"},
    {"_ring", "_readiness"},
    {"_trial"},
    {"_backend"},
    {"_engine"},
    {"_chains"},
    {"_loop", "_task_way"},
    {"_driver"},
    {"_lease", "_provided"},
    {"_socket_operations"},
    {"_socket"},
    {"_endpoint", "_split"},
    {"_send", "_receive"},
    {"_pump"},
    {"_stream_pump"},
    {"_streams", "_udp_receive", "_udp_send"},
    {"_listeners", "_stdio", "_processes", "_udp"},
    {"_open", "_enable", "socket"},
    {"_tls", "_unix"},
    {"_vectored", "_buffered"},
    {"_frames", "_network"},
    {"_loop_sink"},
    {"_copy", "_send_file"},
    {"_frame_stream", "_socket_networks", "_simulated_link", "_deterministic", "_observed"},
    {"_simulated_transport"},
    {"_simulated_hosts"},
    {"_simulated"},
    {"testing"},
    {"__init__"},
    {"prometheus", "pytest_plugin"},
    {"_demo_files", "_info"},
    {"_demo_server", "_demo_report"},
    {"_demo"},
    {"__main__"},
]
# A way to wait and what uses it know each other's types, and nothing else of each other.
TYPES_ONLY = {
    "_readiness": {"_backend", "_engine"},
    "_engine": {"_task_way"},
    "_loop": {"_driver"},
    "_task_way": {"_driver"},
}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All of it, but what is there for a type checker only."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING"):
            yield child
            yield from at_run_time(child)


def imported(path: pathlib.Path, types: bool = True) -> set[str]:
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if types else at_run_time(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trio_uring."):
            names.add(node.module.removeprefix("trio_uring."))
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_every_import_points_down(path):
    assert path.stem in RANK, "a module without a layer: give it one here and in docs/design.md"
    above = {name for name in imported(path) if name in RANK and RANK[name] >= RANK[path.stem]}
    assert above == TYPES_ONLY.get(path.stem, set())
    assert not above & imported(path, types=False)


def test_only_rings_touch_ffi():
    assert [path.stem for path in sorted(PACKAGE.glob("*.py")) if "_uring" in imported(path)] == ["_extension"]
    touching = [path.stem for path in sorted(PACKAGE.glob("*.py")) if "_extension" in imported(path)]
    assert touching == ["_entries", "_ring", "_trial"]


@pytest.mark.parametrize("name", ["_op", "_contract", "_statistics", "_chunks", "framing"])
def test_leaves_import_nothing_of_trio(name):
    assert "import trio\n" not in (PACKAGE / f"{name}.py").read_text()


def test_importing_the_package_opens_nothing():
    assert not trio_uring._ring._open_rings
