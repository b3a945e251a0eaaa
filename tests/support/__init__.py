"""What the tests share: connected pairs, children, peers, fakes, and checks of a run.

Rules: a test imports from here by name (`from support.streams import ...`); modules of this package
import each other relatively, because `python -m tests.denied` imports them under another name.
"""
