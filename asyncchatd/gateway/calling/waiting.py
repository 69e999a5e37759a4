"""The calls of one chat that wait for their turn: of what only the newest says something, only that waits.

A customer types while his call waits for a restoration, and a page says again and again what was read.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncchatd.wire import ClientCall, Operation

_TYPING = frozenset({Operation.START_TYPING, Operation.STOP_TYPING})


def with_call(waiting: Sequence[ClientCall], call: ClientCall) -> list[ClientCall] | None:
    """The calls that wait when `call` comes behind `waiting`; `None` when one that waits says as much.

    Of typing the newest stays, whether it starts or stops; of read receipts the highest. All others stay, in their
    order, and each call is told by its identity: two that are alike are two.
    """
    if call.operation is Operation.READ_RECEIPT and any(
        each.operation is Operation.READ_RECEIPT and each.asked_from >= call.asked_from for each in waiting
    ):
        return None
    return [*(each for each in waiting if not _says_more(call, each)), call]


def _says_more(newer: ClientCall, older: ClientCall) -> bool:
    if newer.operation is Operation.READ_RECEIPT:
        return older.operation is Operation.READ_RECEIPT
    return newer.operation in _TYPING and older.operation in _TYPING
