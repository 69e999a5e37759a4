"""What goes wrong with a store, for its callers to catch."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be opened or used; the text says what a person can do about it."""


class StoreFull(StoreError):
    """More pushes wait for the disk than the queue holds; nothing of this one was kept."""


class StoreUnwritable(StoreError):
    """The disk is full or read-only, for instance: nothing can be written at present, and nothing of this
    was. The store tells the operator, once when it begins and once when it is over."""

    stood_still = False
    """It came of this process, which stood still; nothing is known to be wrong with the store."""
    outage = ""
    """Since when that is so and what it means meanwhile, for whoever asks; empty where the store does not say."""


class StoreMoved(StoreUnwritable):
    """What is open is not what lies at the store's address any more, or is not used any more: what were written would
    be lost."""


def in_full(error: StoreError) -> str:
    """What a person who asks is told: the error, and how long that has been so."""
    outage = error.outage if isinstance(error, StoreUnwritable) else ""
    return f"{error}; {outage}" if outage else str(error)


class ConsumerUnknown(StoreError):
    """No consumer has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no consumer is named {name}")


class ConsumerPushed(StoreError):
    """The consumer is told by a webhook, and fetches nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the consumer {name} is told by its webhook")


class CursorAhead(StoreError):
    """A consumer acknowledges what it was never given. `given` is the highest id that it was."""

    def __init__(self, given: int) -> None:
        super().__init__(f"nothing behind the id {given} was given out yet")
        self.given = given


class StoreDamaged(StoreError):
    """What is stored turned out to be damaged while it was in use. Nothing can be written any more; the next
    `open` looks at all of it and sets it aside."""
