"""Tests of servers: limits, the graceful end, systemd, the PROXY protocol."""
