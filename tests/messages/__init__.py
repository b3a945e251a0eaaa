"""Tests of messages: frames, buffered receiving, lists of buffers."""
