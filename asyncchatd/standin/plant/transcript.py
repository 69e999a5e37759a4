"""The transcript of a chat in the plant: its events, and which of them a request asks for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from asyncchatd.model import TokenNews, replace
from asyncchatd.standin.messages import PlantEvent
from asyncchatd.standin.plant.parts import ChatSession

CUSTOMER = 1
AGENT = 2
"""The `participantId` of each."""


def tokens_of(session: ChatSession) -> TokenNews:
    """The tokens a session has now."""
    return TokenNews(session.chat_id, session.user_id, session.secure_key, session.alias)


def participant_left(session: ChatSession, participant_id: int, code: int | None = None) -> PlantEvent:
    """The event of a participant who leaves; `code` is the `quit-reason-code`."""
    leaves = (
        by_customer(session, "ParticipantLeft") if participant_id == CUSTOMER else by_agent("ParticipantLeft")
    )
    return replace(leaves, quit_reason_code=code)


def by_customer(session: ChatSession, event_type: str, text: str | None = None) -> PlantEvent:
    """An event that the customer causes."""
    return PlantEvent(
        type=event_type,
        participant_id=CUSTOMER,
        participant_type="Client",
        nickname=session.nickname,
        text=text,
    )


def by_agent(event_type: str, text: str | None = None) -> PlantEvent:
    """An event that an agent causes."""
    return PlantEvent(
        type=event_type, participant_id=AGENT, participant_type="Agent", nickname="Agent", text=text
    )


def is_typing(event: PlantEvent) -> bool:
    """Whether it is one that is shown as long as it holds, and not kept."""
    return event.kind in ("typingstarted", "typingstopped")


def is_message_of_customer(event: PlantEvent) -> bool:
    """Whether it is what the customer said."""
    return event.kind == "message" and event.participant_id == CUSTOMER


def asked_for(session: ChatSession, position: int) -> Sequence[PlantEvent]:
    """The events a `transcriptPosition` asks for (protocol section 2)."""
    if position == 1 or position < -1:
        return session.events
    if position == 0 or position >= session.next_index:
        return ()
    if position == -1:
        return session.events[-1:]
    return session.events[bisect_left(session.events, position, key=lambda event: event.index or 0) :]
