"""Before the daemon flies: `init` and `check`."""

from asyncchatd.preflight import checks, extras, first_push, installing
from asyncchatd.preflight.wording import AREAS, area

__all__ = [
    "AREAS",
    "area",
    "checks",
    "extras",
    "first_push",
    "installing",
]
