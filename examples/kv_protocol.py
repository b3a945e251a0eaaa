"""What kv_server.py and its clients say to each other: frames with a length prefix
(trio_uring.FrameStream).

Request:   operation (1 byte), length of the key (2 bytes, big-endian), the key, and for PUT the
           value.
Response:  status (1 byte), and for a GET that found its key the value.

Requests may be sent ahead (pipelined); responses come in their order.
"""

from __future__ import annotations

import struct

REQUEST = struct.Struct(">BH")
GET, PUT, DELETE = 1, 2, 3
FOUND, MISSING, REFUSED = 0, 1, 2

KEY_MAX = 1024  # bytes
VALUE_MAX = 2**20  # bytes
FRAME_MAX = REQUEST.size + KEY_MAX + VALUE_MAX


def parse_request(frame: bytes) -> tuple[int, bytes, bytes] | None:
    """Operation, key and value; None: it is not a request."""
    if len(frame) < REQUEST.size:
        return None
    operation, key_length = REQUEST.unpack_from(frame)
    end = REQUEST.size + key_length
    if operation not in (GET, PUT, DELETE) or key_length > KEY_MAX or end > len(frame):
        return None
    if operation != PUT and end != len(frame):
        return None
    return operation, frame[REQUEST.size : end], frame[end:]
