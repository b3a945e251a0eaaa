"""Tests of the packaging: metadata, and what builds without a compiler."""
