"""One act: a server on each stack, one load for both, and rounds in turn.

Rules of this file: the figure of a stack is the least CPU time for each operation of all its
rounds: other work on the machine can only add to it. The server's time is read while nothing is on
its way. Every act has new processes.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .children import Child, child

if TYPE_CHECKING:
    from collections.abc import Callable

    from .acts import Act

STACKS = ("trio", "trio_uring")


@dataclass
class Outcome:
    """What is known of an act so far.

    Attributes:
        cpu: seconds of the server's CPU time for each operation, by stack.
        operations, counts: what the load has counted, on both.
        done: rounds of both stacks together.
        failed: why it could not go on; empty: it could.
    """

    act: Act
    rounds: int
    cpu: dict[str, float] = field(default_factory=dict)
    operations: float = 0
    counts: Counter[str] = field(default_factory=Counter)
    done: int = 0
    failed: str = ""

    @property
    def complete(self) -> bool:
        return self.done == self.rounds * len(STACKS)

    def add(self, stack: str, seconds: float, operations: float, counts: dict[str, int]) -> None:
        """Another round is done, for which the server has used so many seconds of CPU time."""
        self.done += 1
        self.cpu[stack] = min(self.cpu.get(stack, float("inf")), seconds / operations)
        self.operations += operations
        self.counts.update(counts)


async def perform(
    outcome: Outcome, seconds: float, server_cpu: int, show: Callable[[Outcome], object]
) -> None:
    """Performs an act.

    Args:
        outcome: is filled in.
        seconds: of a round.
        server_cpu: the CPU that the servers are pinned to; -1: none.
        show: is given `outcome` whenever it has changed.

    Raises:
        DemoError: a process failed, or what came back was wrong.

    Cancellation: all processes are ended.
    """
    act = outcome.act
    async with AsyncExitStack() as children:
        load = await children.enter_async_context(
            child("the load", "loads", act.name, json.dumps(dict(act.sizes)))
        )
        servers: dict[str, Child] = {}
        for stack in STACKS:
            name, words = f"the server on {stack}", (act.name, stack, str(server_cpu))
            servers[stack] = await children.enter_async_context(child(name, "servers", *words))
        ports = {stack: (await server.next())["port"] for stack, server in servers.items()}
        await load.ask(ports)
        for _ in range(outcome.rounds):
            for stack, server in servers.items():
                await server.ask({})
                done = await load.ask({"stack": stack, "seconds": seconds}, seconds)
                used = await server.ask({})
                outcome.add(stack, used["cpu"], done["operations"], done["counts"])
                show(outcome)
