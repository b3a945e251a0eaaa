"""Robustness tests: what happens to a ring driver when runs end badly, processes misbehave and
limits are reached."""
