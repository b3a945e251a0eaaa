"""The kinds of workloads, a row each.

Rules of this file: data only. The names of modes are those of the servers.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    mode: str = "echo"
    paced: bool = False
    unit: str = "operation"
    batched: bool = False
    apart: bool = False


KINDS = {
    "echo": Kind(paced=True),
    "pipelined": Kind(),
    "connect": Kind(),
    "scopes": Kind("scopes", paced=True),
    "frames": Kind("frames", paced=True),
    "in": Kind("in", unit="MiB"),
    "out": Kind("out", unit="MiB"),
    "list": Kind("list"),
    **{mode: Kind(mode, unit="frame", batched=True) for mode in SENDING},
    "relay": Kind("relay"),
    "relay-bulk": Kind("relay", unit="MiB"),
    "send-file": Kind("send-file", unit="MiB"),
    "idle": Kind(apart=True),
    "startup": Kind(apart=True),
}
