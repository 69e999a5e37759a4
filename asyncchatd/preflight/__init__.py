"""Before the daemon flies: `init` and `check`."""

from typing import TYPE_CHECKING

from asyncchatd.faces import on_demand

if TYPE_CHECKING:
    from asyncchatd.preflight import checks, connecting, extras, first_push, installing
    from asyncchatd.preflight.wording import AREAS, area
else:
    __getattr__ = on_demand(
        __name__,
        {
            "checks": (),
            "connecting": (),
            "extras": (),
            "first_push": (),
            "installing": (),
            "wording": ("AREAS", "area"),
        },
    )

__all__ = [
    "AREAS",
    "area",
    "checks",
    "connecting",
    "extras",
    "first_push",
    "installing",
]
