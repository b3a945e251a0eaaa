"""What file_server.py and file_client.py say to each other.

Request:   offset, length of the path, the path (UTF-8). Any number of them on one connection, one
           after the other.
Answer:    status, bytes that follow, size of the whole file, SHA-256 of the whole file; then the
           file from the offset on.

A client that was interrupted asks again with the offset it had reached, and checks the checksum
when it has everything. Both sides refuse a size above its limit before they take memory for it.
"""

import struct

REQUEST = struct.Struct("!QH")  # offset (bytes), length of the path (bytes)
# Status, length of what follows (bytes), size of the file (bytes), its SHA-256.
ANSWER = struct.Struct("!BQQ32s")

OK, REFUSED = 0, 1

PATH_MAX = 1024  # bytes of a path; a longer one ends the connection
FILE_MAX = 2**32  # bytes of a file that the client is ready to store
