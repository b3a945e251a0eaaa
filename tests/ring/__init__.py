"""Tests of rings: the protocol's contract, and the kernel's own."""
