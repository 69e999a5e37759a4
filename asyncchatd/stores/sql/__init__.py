"""The calls of the contract that are the same over every database which speaks SQL.

The statements, and what is done in one transaction, stand with each store; the rules of the calls stand here, once.
"""

from asyncchatd.stores.sql.store import SqlStore
from asyncchatd.stores.sql.transactions import Step

__all__ = ["SqlStore", "Step"]
