"""What `asyncchatd check --connect` finds out: of GMS, Chat Servers, consumers, the store and this host."""
