"""Tests of what holds bytes: the queue of chunks, and the pool of buffers."""
