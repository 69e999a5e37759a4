"""The control port: the API, its page and its client."""
