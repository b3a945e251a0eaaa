"""Tests of the network layer. A package, so that its modules can share `networks` and the other
helpers."""
