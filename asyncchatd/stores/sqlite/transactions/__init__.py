"""The transactions of an SQLite store, on the tables of its schema."""
