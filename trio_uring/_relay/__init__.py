"""Moves bytes from a stream or a file to a stream, without waking a task for them."""
