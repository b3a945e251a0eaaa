"""Robustness tests: runs that end badly, processes that misbehave, and limits that are reached."""
