"""Tests of the networks: of sockets, and simulated."""
