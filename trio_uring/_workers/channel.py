"""What a supervisor and a worker tell each other: JSON in frames, over a pair of Unix sockets.

From the supervisor: first the order (`Order`), later {"ask": "metrics"} and {"ask": "cut short"}.
From the worker: {"ready": true}, {"failed": text, "details": text} and {"metrics": series or null}.
The end of the stream means that the other one is gone: the kernel says so whatever it died of.

Rules of this file: the worker's end blocks, since a thread of its own reads it (`child`). Both
directions are trusted: the processes are of one program.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .._messages.frames import receive_frame, send_frame
from ..framing import FrameDecoder, encode_prefix
from .target import Target

if TYPE_CHECKING:
    import socket

    import trio

KILL_SECONDS = 5.0  # after the time of grace: a worker that has not ended by then is stuck
ANSWER_SECONDS = 2.0  # for a worker's metrics
MESSAGE_MAX = 64 * 2**20  # bytes; a page of metrics may be long
_CHUNK = 65536  # bytes of a read


@dataclass(frozen=True)
class Order:
    """What a worker is to be."""

    number: int
    workers: int
    target: Target
    listeners: list[int]  # descriptors
    argv: list[str]
    path: list[str]  # sys.path
    backend: str | None
    grace: float  # seconds
    metrics: bool
    buffers: dict[str, Any] = field(default_factory=dict)  # fields of SocketOptions

    def as_message(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_message(cls, message: dict[str, Any]) -> Order:
        return cls(**{**message, "target": Target(**message["target"])})


async def send_message(stream: trio.abc.SendStream, message: dict[str, Any]) -> None:
    """Sends one; raises what send_frame does."""
    await send_frame(stream, json.dumps(message).encode(), MESSAGE_MAX)


async def receive_message(stream: trio.abc.ReceiveStream) -> dict[str, Any]:
    """Receives one; raises what receive_frame does."""
    message: dict[str, Any] = json.loads(await receive_frame(stream, MESSAGE_MAX))
    return message


class Channel:
    """The worker's end. `send` may be called in any thread, `receive` in one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        os.set_inheritable(sock.fileno(), False)  # else a child of the worker would keep it open
        sock.setblocking(True)
        self._sock = sock
        self._decoder = FrameDecoder(MESSAGE_MAX)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one; without a supervisor it goes nowhere."""
        payload = json.dumps(message).encode()
        # whoever reads the channel sees its end
        with contextlib.suppress(OSError), self._lock:
            self._sock.sendall(encode_prefix(len(payload)) + payload)

    def receive(self) -> dict[str, Any] | None:
        """Waits for a message; None: the supervisor is gone."""
        while (frame := self._decoder.next_frame()) is None:
            try:
                chunk = self._sock.recv(_CHUNK)
            except OSError:
                return None
            if not chunk:
                return None
            self._decoder.feed(chunk)
        message: dict[str, Any] = json.loads(frame)
        return message
