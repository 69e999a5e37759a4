"""What the gateway knows of the chats that clients look at, and when GMS is asked about one."""
