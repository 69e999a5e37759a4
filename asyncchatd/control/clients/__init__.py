"""The clients of the control API, for commands and for event loops."""
