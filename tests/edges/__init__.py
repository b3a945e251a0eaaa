"""Tests of what is around the streams: TLS, Unix listeners, shared ports, split streams, child
processes, standard streams."""
