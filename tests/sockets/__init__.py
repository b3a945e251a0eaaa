"""Tests of UringSocket, of trio_uring.socket, and of enabling. A package, so that its modules can
share `support`."""
