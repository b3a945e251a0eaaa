"""`python -m trio_uring bench`: servers side by side, under load from the same generator.

Rules of this package: nothing of it is imported by `import trio_uring`.
"""
