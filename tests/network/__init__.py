"""Tests of the networks: on sockets, and simulated."""
