"""The doors: listeners, who may come in, and TLS."""
