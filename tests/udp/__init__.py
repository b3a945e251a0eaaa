"""Tests of UDP."""
