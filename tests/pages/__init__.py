"""Tests of the site: its pages, and what they say of the code."""
