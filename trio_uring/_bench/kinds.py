"""The kinds of workloads, a row each.

Rules of this file: data only. The names of modes are those of the servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROGRAMS = ("hypercorn", "websockets")
SENDING = ("send-frame", "send-joined", "send-twice", "send-many")


@dataclass(frozen=True)
class Kind:
    """What the workloads of one kind have in common.

    Attributes:
        mode: of the server.
        paced: whether it is also measured at a fixed rate.
        unit: what CPU time and rate are given for.
        batched: whether the load counts answers that are many units each.
        apart: whether it is measured by other means than rounds under load.
        load: numbers for the load generator that no other kind needs, by name.
        needs: modules without which it cannot be measured.
        tls: whether the load is that of `tls_load`.
    """

    mode: str = "echo"
    paced: bool = False
    unit: str = "operation"
    batched: bool = False
    apart: bool = False
    load: Mapping[str, int] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    tls: bool = False


DEPTH = 16  # messages outstanding on a connection, of the kinds that have more than one
KINDS = {
    "echo": Kind(paced=True),
    "pipelined": Kind(load={"depth": DEPTH}),
    "connect": Kind(load={"mode": 1}),
    "scopes": Kind("scopes", paced=True),
    "frames": Kind("frames", paced=True, load={"framed": 1}),
    "in": Kind("in", unit="MiB", load={"mode": 2}),
    "out": Kind("out", unit="MiB", load={"mode": 3}),
    "list": Kind("list"),
    **{mode: Kind(mode, unit="frame", batched=True) for mode in SENDING},
    "relay": Kind("relay", load={"paired": 1}),
    "relay-bulk": Kind("relay", unit="MiB", load={"depth": DEPTH, "paired": 1}),
    "send-file": Kind("send-file", unit="MiB"),
    "udp": Kind("udp", paced=True, load={"datagrams": 1}),
    "udp-many": Kind("udp-many", load={"datagrams": 1}),
    "hypercorn": Kind("hypercorn", load={"http": 1}, needs=("hypercorn.trio",)),
    "websockets": Kind("websockets", load={"websocket": 1}, needs=("websockets.trio.server",)),
    "tls": Kind("tls", needs=("trustme",), tls=True),
    "cancel": Kind("cancel", apart=True),
    "idle": Kind(apart=True),
    "startup": Kind(apart=True),
}
