"""Tests of streams, listeners and openers (TCP, Unix, TLS, pipes, processes), and of enabling."""
