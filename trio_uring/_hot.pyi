"""The accelerator; see _c/hot.c."""

from typing import Any

class Operation:
    """The base of _ring.op.Operation."""

class Ring:
    """The base of _ring.base.RingBase."""

def write_all(ring: Any, queue: dict[Any, None]) -> bool: ...
def finish_all(done: list[Any]) -> bool: ...
