"""Tests of copies, relays and files: bytes that move without waking a Python task for each
chunk."""
