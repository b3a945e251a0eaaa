"""Performs the operations of one trio.run. Only this package parks and wakes tasks."""
