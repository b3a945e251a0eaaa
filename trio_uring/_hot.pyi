"""The accelerator; see _c/hot.c."""

from collections.abc import Callable, Generator
from typing import Any, NoReturn

import trio

class Operation:
    task: trio.lowlevel.Task | None
    then: Callable[[], object] | None
    raise_cancel: Callable[[], NoReturn] | None
    res: int
    owed: bool

    def unwrap(self) -> int: ...
    def finish(self) -> bool: ...
    def unlink(self) -> None: ...
    def __await__(self) -> Generator[Any, Any, int]: ...
