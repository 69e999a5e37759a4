"""The worker: pings what is due."""
