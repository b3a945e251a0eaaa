"""Tests of what a descriptor's users share: one task per direction."""
