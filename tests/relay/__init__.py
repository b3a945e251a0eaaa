"""Copies, relays and files: bytes that move without a Python task for each chunk."""
