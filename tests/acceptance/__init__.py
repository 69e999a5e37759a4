"""Acceptance: `asyncchatd run` as a process, judged by an independent plant over HTTP and signals alone."""
