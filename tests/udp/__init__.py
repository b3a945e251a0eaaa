"""Tests of UDP. A package, so that its modules can share `support`."""
