"""trio's own sockets, whose waits are the ring's."""
