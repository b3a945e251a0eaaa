"""trio's sockets, waiting on the ring."""
