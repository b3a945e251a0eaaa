"""Bytes without I/O: queues, outgoing buffers, a pool, what streams can do, the rule of timeouts.

No ring, no descriptor.
"""
