"""The configuration: what may be set, and how it is read."""
