"""The SQLite store: one file, durable before it answers; `MemoryStore` is the same one without a file."""

from asyncchatd.stores.sqlite.file.backup import back_up
from asyncchatd.stores.sqlite.file.downgrade import downgrade
from asyncchatd.stores.sqlite.file.file import looks_like_sqlite
from asyncchatd.stores.sqlite.file.rescue import Saved
from asyncchatd.stores.sqlite.place import is_held
from asyncchatd.stores.sqlite.store import MemoryStore, SqliteStore

__all__ = ["MemoryStore", "Saved", "SqliteStore", "back_up", "downgrade", "is_held", "looks_like_sqlite"]
