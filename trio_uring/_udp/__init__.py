"""UDP sockets: datagrams, many at a time."""
