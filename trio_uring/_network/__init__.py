"""A network as a value: on sockets, or in memory."""
