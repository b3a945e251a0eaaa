"""The demonstration: a file server and its clients, compared with trio."""
