"""The way to GMS: its client, its connections, and how fast it may be asked."""
