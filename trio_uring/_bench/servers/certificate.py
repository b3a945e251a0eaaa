"""A certificate for the servers of the mode `tls`, made when one starts.

Rules of this file: nobody checks it; it is like those that are in use, a key on P-256.
"""

from __future__ import annotations

import importlib
import ssl
from typing import Any


def server_context() -> ssl.SSLContext:
    trustme: Any = importlib.import_module("trustme")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context
