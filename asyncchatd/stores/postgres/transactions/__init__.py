"""What each call of the PostgreSQL store does inside its transaction."""
