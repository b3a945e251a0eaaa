"""Servers with manners: limits, a graceful end, systemd, the PROXY protocol."""
