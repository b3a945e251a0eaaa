"""Tests of the streams, listeners and openers on the kernel's own ring. A package, so that its
modules can share `support`."""
