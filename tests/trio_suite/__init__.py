"""trio's own tests, which are in its wheel, with our sockets and streams in place of trio's.

`python -m tests.trio_suite` runs them all: on stock trio, with our sockets, and with our sockets
and streams, on each ring. tests/test_trio_suite.py runs them on the default ring.
"""
