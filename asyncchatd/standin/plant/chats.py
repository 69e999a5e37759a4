"""The chats of a plant: their sessions, their events and tokens, their silence and their end."""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Iterator

from asyncchatd.model import replace
from asyncchatd.standin.messages import PlantEvent
from asyncchatd.standin.plant.parts import ChatSession, PlantError, PlantServer, Previous
from asyncchatd.standin.plant.pushing import Common, Pushing
from asyncchatd.standin.plant.transcript import AGENT, CUSTOMER, by_customer, is_typing, participant_left
from asyncchatd.wire import event_kind

QUIT_SILENCE = 3


class Chats:
    """The chat sessions of all Chat Servers, dead ones included."""

    def __init__(self, common: Common, pushing: Pushing) -> None:
        self._common = common
        self._pushing = pushing
        self.sessions: dict[str, ChatSession] = {}
        """By chat id; those that ended too."""
        self.alive = 0
        """How many have not ended."""
        self._with_push: OrderedDict[str, ChatSession] = OrderedDict()
        self._without_push: OrderedDict[str, ChatSession] = OrderedDict()
        self._turns: deque[ChatSession] = deque()
        self._serial = secrets.randbelow(2**24)

    def named(self, chat_id: str) -> ChatSession:
        """Raises `PlantError` for one that never was."""
        try:
            return self.sessions[chat_id]
        except KeyError:
            raise PlantError("no such chat") from None

    def some(self, count: int) -> Iterator[ChatSession]:
        """The next `count` live sessions, in turn: every session comes before any comes again."""
        for _ in range(min(count, self.alive)):
            while self._turns[0].ended is not None:
                self._turns.popleft()
            self._turns.rotate(-1)
            yield self._turns[-1]

    def open(
        self,
        server: PlantServer,
        service: str,
        *,
        subscribed: bool,
        nickname: str = "Customer",
        node: int | None = None,
    ) -> ChatSession:
        """A new chat, asked for at a GMS node, or at each in turn."""
        self._serial += 1
        session = ChatSession(
            chat_id=f"{self._serial:08X}{secrets.token_hex(4).upper()}",
            service=service,
            user_id=self._new_user_id(server),
            secure_key=secrets.token_hex(10),
            alias=server.app_dbid,
            process=server.process,
            idle=self._with_push if subscribed else self._without_push,
            last_request=self._common.now(),
            nickname=nickname,
            node=node or len(self.sessions) % self._common.settings.gms_nodes + 1,
        )
        self.add_event(session, by_customer(session, "ParticipantJoined"))
        self.sessions[session.chat_id] = session
        server.process.sessions[session.chat_id] = session
        server.process.opened += 1
        session.idle[session.chat_id] = session
        self._turns.append(session)
        self.alive += 1
        return session

    def add_event(self, session: ChatSession, event: PlantEvent) -> PlantEvent:
        """Stamps and keeps an event; an agent's typing only until he does something else. Every fourth index is left
        out, as that of typing would be."""
        if session.typing is not None and event.participant_id == AGENT:
            session.events = [kept for kept in session.events if kept is not session.typing]
            session.typing = None
        index = session.next_index + (session.next_index % 4 == 3)
        kept = replace(event, kind=event_kind(event.type), index=index, utc_time=self._common.wall_ms())
        session.events.append(kept)
        session.next_index = index + 1
        if is_typing(kept):
            session.typing = kept
        return kept

    @staticmethod
    def renumber(session: ChatSession) -> None:
        """The transcript as it is loaded from storage, where nobody's typing ever was: its indexes have no gaps, so
        that every one behind the first gap is another one than before."""
        kept = [event for event in session.events if event is not session.typing]
        session.events = [replace(event, index=n) for n, event in enumerate(kept, 1)]
        session.typing = None
        session.next_index = len(kept) + 1
        session.read_to = min(session.read_to, len(kept))

    def rotate(self, session: ChatSession) -> None:
        until = self._common.now() + self._common.settings.previous_key_grace
        session.previous = Previous(session.user_id, session.secure_key, until, self._common.wall_ms())
        session.secure_key = secrets.token_hex(10)
        if self._common.settings.rotate_user_id:
            session.user_id = self._new_user_id(session.process.server)
        session.rotate_next = False

    def _new_user_id(self, server: PlantServer) -> str:
        """Hex of DBID, unix seconds and a counter, as real ones look (protocol section 2)."""
        self._serial += 1
        dbid = int(server.app_dbid) if server.app_dbid.isdecimal() else 0
        return (
            f"{dbid & 0xFFFF:04X}{self._common.wall_ms() // 1000 & 0xFFFFFFFF:08X}{self._serial & 0xFFFF:04X}"
        )

    def heard_of(self, session: ChatSession, node: int | None = None) -> None:
        """Any request of the client ends its silence, acknowledges what was pushed, and finds another GMS node for the
        pushes where theirs is gone."""
        self._pushing.rebind(session, node)
        session.last_request = self._common.now()
        session.push_taken = False
        session.idle.move_to_end(session.chat_id)
        if (owed := self._pushing.settle(session)) is not None:
            self._common.suffering.acknowledged += 1
            self._common.suffering.acknowledgement.append(session.last_request - owed.since)

    def remove_silent(self) -> None:
        """Removes those whose client was silent for too long."""
        now, settings = self._common.now(), self._common.settings
        self._remove_silent(self._with_push, now - settings.flex_push_timeout)
        self._remove_silent(self._without_push, now - settings.flex_disconnect_timeout)

    def _remove_silent(self, idle: OrderedDict[str, ChatSession], before: float) -> None:
        """The longest silent stand first, so this looks at one session more than it removes."""
        while idle:
            session = next(iter(idle.values()))
            if session.last_request > before:
                return
            event = self.add_event(session, participant_left(session, CUSTOMER, code=QUIT_SILENCE))
            self.tell_requestor(session, event)
            self.end(session, "silence", lost=True)

    def tell_requestor(self, session: ChatSession, event: PlantEvent) -> None:
        if session.notify_requestor and session.device_id and self._common.settings.push_url is not None:
            self._pushing.push(session, event.type, event)

    def end(self, session: ChatSession, cause: str, *, lost: bool = False) -> None:
        session.ended = cause
        session.process.sessions.pop(session.chat_id, None)
        session.idle.pop(session.chat_id, None)
        self.alive -= 1
        (self._common.suffering.lost if lost else self._common.suffering.ended)[cause] += 1
        if self._pushing.settle(session) is not None:
            self._common.suffering.ended_unacknowledged += 1
