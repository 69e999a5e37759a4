"""The file of an SQLite store: opened, written, watched, saved and salvaged."""
