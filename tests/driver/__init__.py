"""Tests of the driver: the trial of a ring, and whole runs over a simulated one."""
