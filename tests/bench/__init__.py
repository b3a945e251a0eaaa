"""Tests of `python -m trio_uring bench`."""
