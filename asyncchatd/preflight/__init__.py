"""Before the daemon flies: `init` and `check`."""

from asyncchatd.preflight import checks, first_push, installing
from asyncchatd.preflight.wording import AREAS, area

__all__ = [
    "AREAS",
    "area",
    "checks",
    "first_push",
    "installing",
]
