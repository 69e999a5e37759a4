"""How TLS trusts: a file of authorities holds authorities, under every Python."""

from __future__ import annotations

import ssl
from pathlib import Path


def tls_context(
    purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH, *, authorities: Path | None = None
) -> ssl.SSLContext:
    """The default context, with `authorities` (PEM) instead of the system's. A peer's chain has to end in a
    self-signed one: from Python 3.13 on the default is content with any certificate in the file, so that a server's
    own, named as the authority by mistake, would pass there and nowhere else. Raises `OSError`."""
    context = ssl.create_default_context(purpose, cafile=authorities)
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
