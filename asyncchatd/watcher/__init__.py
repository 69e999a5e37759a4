"""The watcher: notices lost Chat Servers."""

from asyncchatd.watcher import identity
from asyncchatd.watcher.page import REDIRECTS, HealthPages, Page, Unreachable, Unreadable, Unseen
from asyncchatd.watcher.watcher import Watcher

__all__ = [
    "REDIRECTS",
    "HealthPages",
    "Page",
    "Unreachable",
    "Unreadable",
    "Unseen",
    "Watcher",
    "identity",
]
