"""Three nodes on one PostgreSQL, of which any may die."""
