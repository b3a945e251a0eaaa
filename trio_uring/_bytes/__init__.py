"""Bytes without I/O: chunks in order, buffers that go out, a pool; what streams can do, and the
rule of timeouts. No ring, no descriptor."""
