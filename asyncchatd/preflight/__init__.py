"""Before the daemon flies: `init` and `check`."""
