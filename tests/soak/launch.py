"""`asyncchatd run FILE` with a clock that the soak can set: python -m soak.launch STEP CONFIG

STEP is a file with the seconds by which the daemon's time of day is off. Only the clock is another one,
put where the daemon makes its own; everything else is the command as it is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from asyncchatd import tether
from asyncchatd.cli import commands as cli
from asyncchatd.daemon import run as daemon
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import Ms

LOOK_SECONDS = 0.05


class SettableClock(SystemClock):
    """The machine's clocks, but for the time of day, which is off by what a file says."""

    def __init__(self) -> None:
        self._file = Path(sys.argv[1])
        self._step: Ms = 0
        self._look_at = 0.0

    def now(self) -> Ms:
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._step = round(float(self._file.read_text() or 0) * 1000)
        return super().now() + self._step


def main() -> None:
    tether.hold()  # however the soak ends, its daemon ends with it
    setattr(daemon, "SystemClock", SettableClock)  # noqa: B010 - it is the daemon's own import
    cli.main(["run", "--config", sys.argv[2]], prog_name="asyncchatd")


if __name__ == "__main__":
    main()
