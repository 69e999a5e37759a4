"""The contract of `asyncchatd.stores.base`, kept by every store."""
