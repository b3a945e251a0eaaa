"""End-to-end tests: unmodified libraries in enabled runs. A package, so that its modules can share
`support` and `apps`."""
