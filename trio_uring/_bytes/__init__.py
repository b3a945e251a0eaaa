"""Bytes without I/O: chunks in order, views of callers' buffers, a pool, the rule of timeouts. No
ring, no descriptor."""
