"""What all have in common who share a database: its tables and their owner, the store's one row, nodes, counts."""
