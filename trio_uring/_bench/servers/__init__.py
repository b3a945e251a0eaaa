"""The servers that are measured, each a program of its own.

Rules of this package: a program here is run by its path, so that a server of another library has
nothing of trio_uring in it. It prints its port, serves on loopback, and ends when its standard
input does. It does nothing besides: no statistics, no logging, no second thread.
"""
