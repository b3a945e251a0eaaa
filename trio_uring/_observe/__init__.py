"""Metered and audited networks: one wrapper, two observers."""
