"""The watcher: notices lost Chat Servers."""
