"""The credentials that systemd hands to a service: secrets in files that only it can read.

Reference: the CREDENTIALS section of systemd.exec(5).
"""

from __future__ import annotations

import os
from pathlib import Path


def credential(name: str) -> Path:
    """The file of a credential that the unit loads with `LoadCredential=NAME:...`.

    Raises `LookupError` when the daemon was started without credentials or the name is not a plain
    file name; the file itself may still be missing.
    """
    if not name or "/" in name or name in {".", ".."}:
        raise LookupError(f"{name!r} is not the name of a credential")
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise LookupError(
            "$CREDENTIALS_DIRECTORY is not set (systemd sets it from LoadCredential= in the unit; "
            "by hand give the directory that holds the file yourself, CREDENTIALS_DIRECTORY=/etc/asyncchatd)"
        )
    return Path(directory, name)
