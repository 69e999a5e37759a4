"""The daemon: what runs, and how it starts, reloads and stops."""
