"""The worker: pings what is due."""

from asyncchatd.worker.worker import Worker

__all__ = [
    "Worker",
]
