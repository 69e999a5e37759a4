"""asyncchatd keeps Genesys asynchronous chats alive.

Every session has a due time and a reason. Everything that happens makes sessions due; one worker
pings what is due.
"""

__version__ = "0.1.0"
