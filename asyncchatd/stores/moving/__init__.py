"""Moving all that a store knows into another one: the rows that stores have in common, and the copier."""

from asyncchatd.stores.moving.copying import (
    Arriving,
    Carrier,
    Copied,
    Leaving,
    NotEmpty,
    copy_rows,
    has_moved,
    moved_words,
    sealing_of,
)
from asyncchatd.stores.moving.rows import TABLES, Kind, Row, Table

__all__ = [
    "TABLES",
    "Arriving",
    "Carrier",
    "Copied",
    "Kind",
    "Leaving",
    "NotEmpty",
    "Row",
    "Table",
    "copy_rows",
    "has_moved",
    "moved_words",
    "sealing_of",
]
