"""Before the daemon flies: `init` and `check`."""

from asyncchatd.preflight import checks, installing
from asyncchatd.preflight.findings import AREAS, Finding, Level

__all__ = [
    "AREAS",
    "Finding",
    "Level",
    "checks",
    "installing",
]
