"""Bytes from one stream, or a file, to another stream, which wake no task."""
