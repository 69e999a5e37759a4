"""The documents written from the code: `python -m asyncchatd.log events > docs/log-events.md`, and with
`metrics` docs/metrics.md."""

from __future__ import annotations

import sys

from asyncchatd.log.described import described
from asyncchatd.log.fields import catalogue

DOCUMENTS = {"events": catalogue, "metrics": described}

if __name__ == "__main__":
    match sys.argv[1:]:
        case [name] if name in DOCUMENTS:
            print(DOCUMENTS[name]())
        case _:
            sys.exit(f"usage: python -m asyncchatd.log {{{'|'.join(DOCUMENTS)}}}")
