"""End-to-end tests: unmodified libraries in enabled runs."""
