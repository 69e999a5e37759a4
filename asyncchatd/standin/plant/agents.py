"""What agents do in the chats of a plant. All of it is an event, and a push where the customer subscribed."""

from __future__ import annotations

from collections.abc import Iterable

from asyncchatd.model import TokenNews, replace
from asyncchatd.standin.files import PlantFile
from asyncchatd.standin.messages import PlantEvent
from asyncchatd.standin.plant.chats import Chats
from asyncchatd.standin.plant.files import described, keep
from asyncchatd.standin.plant.parts import ChatSession
from asyncchatd.standin.plant.pushing import Common, Pushing, struck
from asyncchatd.standin.plant.transcript import AGENT, by_agent, participant_left, tokens_of
from asyncchatd.standin.pushes import planted_text


class Agents:
    """The agents of all chats. What they do is `False` where the session's Chat Server cannot take it: it is gone or
    hangs, or the chat is over."""

    def __init__(self, common: Common, chats: Chats, pushing: Pushing) -> None:
        self._common = common
        self._chats = chats
        self._pushing = pushing

    def join(self, session: ChatSession) -> bool:
        """An agent comes into the chat."""
        return self._tell(session, by_agent("ParticipantJoined"))

    def say(self, session: ChatSession, text: str) -> bool:
        """An agent's message."""
        planted = self._planted()
        said = by_agent("Message", text if planted is None else planted_text(planted))
        return self._tell(session, said, planted)

    def type(self, session: ChatSession, *, started: bool) -> bool:
        """An agent begins to type, or stops. Pushed only with `push_typing`, and shown until he does something else."""
        event = by_agent("TypingStarted" if started else "TypingStopped")
        if self._common.settings.push_typing:
            return self._tell(session, event)
        if there := _is_there(session):
            self._chats.add_event(session, event)
        return there

    def notice(self, session: ChatSession, text: str | None, attributes: object = None) -> bool:
        """A custom notice of an agent's desktop."""
        return self._tell(session, replace(by_agent("CustomNotice", text), attributes=attributes))

    def upload(self, session: ChatSession, file: PlantFile) -> bool:
        """An agent's file."""
        if not _is_there(session):
            return False
        file_id = keep(session, file)
        return self._tell(
            session, replace(by_agent("FileUploaded", file_id), user_data=described(file_id, file))
        )

    def close(self, sessions: Iterable[ChatSession]) -> int:
        """Agents close chats. Their next request sees the last words and `chatEnded`. Returns how many lived."""
        closed = 0
        for session in sessions:
            if session.ended is None:
                event = self._chats.add_event(session, participant_left(session, AGENT, code=0))
                if self._common.settings.push_end and session.process.silent_since is None:
                    self._push(session, event)
                session.last_words = True
                self._chats.end(session, "closed_by_agent")
                closed += 1
        return closed

    def _tell(self, session: ChatSession, event: PlantEvent, planted: TokenNews | None = None) -> bool:
        if not _is_there(session):
            return False
        event = self._chats.add_event(session, event)
        if self._push(session, event, planted):
            self._pushing.owe(session)
        return True

    def _push(self, session: ChatSession, event: PlantEvent, planted: TokenNews | None = None) -> bool:
        if session.device_id is None or self._common.settings.push_url is None:
            return False
        self._pushing.push(session, event.type, event, planted=planted)
        return True

    def _planted(self) -> TokenNews | None:
        """Another chat's tokens, for a participant to write into this one."""
        if not struck(self._common.settings.planted_rate):
            return None
        return next((tokens_of(session) for session in self._chats.some(1)), None)


def _is_there(session: ChatSession) -> bool:
    return session.ended is None and session.process.silent_since is None
