"""Tests of the observers: what they count, record and export."""
