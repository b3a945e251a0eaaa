"""Tests of UringSocket and of trio_uring.socket."""
