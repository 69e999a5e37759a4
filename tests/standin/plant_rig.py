"""A plant under a fake clock, and a customer's client that sends real requests to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncchatd.model.data import Tokens
from asyncchatd.model.values import replace
from asyncchatd.standin import Plant, PlantSettings
from asyncchatd.standin.plant.parts import ChatSession, NodeAnswer, Ticket
from asyncchatd.standin.pushes import SentPush
from asyncchatd.standin.requests import read_call
from asyncchatd.wire.chat_api.calls import Call, Operation, call, refresh
from asyncchatd.wire.chat_api.replies import Reply, read_reply

PUSH_URL = "http://127.0.0.1:9/push/secret"


@dataclass
class Clock:
    """Seconds since the plant began; the time of day follows it."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.seconds * 1000)


@dataclass
class Rig:
    """A plant, its clock, and the pushes it sent."""

    plant: Plant
    clock: Clock
    pushes: list[SentPush] = field(default_factory=list)
    node: int | None = None
    """The GMS node that is asked."""

    def wait(self, seconds: float, step: float = 0.5) -> None:
        """Time passes in small steps, as it does on sockets."""
        end = self.clock.seconds + seconds
        while self.clock.seconds < end:
            self.clock.seconds = min(end, self.clock.seconds + step)
            self.plant.advance()

    def chat(self, server: str = "chat-1") -> Customer:
        """A new chat on one server, and a client that knows its tokens."""
        session = self.plant.start_chats(1, servers=[server])[0]
        return Customer(self, session)

    def begin(self, made: Call) -> Ticket:
        """A request on its way: read and queued."""
        self.plant.hit()
        ticket = self.plant.arrive(read_call(made.path, made.body, made.content_type), node=self.node)
        self.plant.queue(ticket)
        return ticket

    def ask(self, made: Call) -> NodeAnswer | None:
        """A whole request; `None` when the Chat Server hangs."""
        ticket = self.begin(made)
        try:
            return ticket.refused or self.plant.serve(ticket)
        finally:
            self.plant.leave(ticket)


class Customer:
    """A client of one chat. `tokens` and `position` follow the replies, as they should."""

    def __init__(self, rig: Rig, session: ChatSession) -> None:
        self.rig = rig
        self.session = session
        self.tokens = Tokens(session.chat_id, session.user_id, session.secure_key, session.alias)
        self.position = session.next_index

    def refresh(self, *, secure_key: str | None = None, position: int | None = None) -> Reply:
        """A ping Refresh whose statusCode-0 reply is learned from."""
        tokens = self.tokens if secure_key is None else replace(self.tokens, secure_key=secure_key)
        asked = self.position if position is None else position
        answer = self.rig.ask(refresh(self.session.service, tokens, asked))
        assert answer is not None, "the Chat Server hangs"
        return self._learned(read_reply(answer.body))

    def do(self, operation: Operation, *fields: tuple[str, str], file_id: str | None = None) -> Reply:
        """Any other operation."""
        answer = self.rig.ask(call(operation, self.session.service, self.tokens, fields, file_id))
        assert answer is not None, "the Chat Server hangs"
        return self._learned(read_reply(answer.body))

    def _learned(self, reply: Reply) -> Reply:
        if reply.status_code == 0 and reply.news.complete():
            news = reply.news
            self.tokens = Tokens(
                news.chat_id or "", news.user_id or "", news.secure_key or "", news.alias or ""
            )
            self.position = reply.next_position or self.position
        return reply


def make_rig(**settings: object) -> Rig:
    """A plant of three Chat Servers with a push URL; settings as `POST /settings` takes them."""
    clock = Clock()
    rig = Rig(Plant(PlantSettings(push_url=PUSH_URL), now=clock, wall_ms=clock.wall_ms), clock)
    rig.plant.send_push = rig.pushes.append
    rig.plant.change(settings)
    return rig


def tokens_of(chat_id: str | None, rig: Rig) -> Tokens:
    """The tokens of a session, by the plant's own word."""
    session = rig.plant.chats.named(chat_id or "")
    return Tokens(session.chat_id, session.user_id, session.secure_key, session.alias)
