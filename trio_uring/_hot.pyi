"""The accelerator; see _c/hot/hot.h."""

from collections.abc import Callable
from typing import Any

class Operation:
    """The base of _ring.op.Operation."""

class Direction:
    """The base of _descriptors.direction.Direction."""

class Engine:
    """The base of _driver.ring_side.RingSide."""

class ReadinessEngine(Engine):
    """The base of _driver.readiness.ReadinessEngine."""

class Ring:
    """The base of _ring.base.RingBase."""

class Loop:
    """The base of _driver.loop.Loop."""

HAPPENED: list[Any]

def use_states(new: Any, submitted: Any, cancelling: Any, done: Any) -> None: ...
def write_queue(ring: Any, queue: dict[Any, None]) -> bool: ...
def finish_all(done: list[Any]) -> bool: ...
def use_methods(
    phase: Any, adapt: Callable[..., None], receive_side: type, send_side: type
) -> None: ...
def use_socket_methods(socket: type) -> None: ...
