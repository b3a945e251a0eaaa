"""Keeps track of who uses a descriptor, in which direction, and how it closes."""
