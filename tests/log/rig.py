"""The log written into memory."""

from __future__ import annotations

import io
import json
import logging

from asyncchatd.log import lines
from asyncchatd.log.events import Level
from asyncchatd.log.lines import Format, configure


class Written(io.BytesIO):
    """What the log wrote."""

    def text(self) -> str:
        return self.getvalue().decode()

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def line(self) -> dict[str, object]:
        [line] = self.lines()
        return line


def writing(level: Level = "info", format: Format = "json") -> Written:
    output = Written()
    configure(level, format, output)
    # pytest listens too, and raises what a library's message is made wrong with.
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__ == lines.__name__]
    return output
