"""A Chat Server at a request: who asks, whether the session must be restored, and the operation itself."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import orjson

from asyncchatd.model import TokenNews, replace
from asyncchatd.standin.plant.answers import Answers
from asyncchatd.standin.plant.chat_servers import ChatServers
from asyncchatd.standin.plant.chats import Chats
from asyncchatd.standin.plant.files import Files
from asyncchatd.standin.plant.parts import ChatSession, NodeAnswer, Phase, Ticket
from asyncchatd.standin.plant.pushing import Common, struck
from asyncchatd.standin.plant.transcript import (
    CUSTOMER,
    by_customer,
    is_message_of_customer,
    participant_left,
    tokens_of,
)
from asyncchatd.standin.requests import Received
from asyncchatd.standin.settings import Rotation
from asyncchatd.wire import Operation

QUIT_BAD_KEY = 6

_MANDATORY = ("GCTI_GMS_PushDeviceId", "GCTI_GMS_PushDeviceType", "GCTI_GMS_NodeGroup")
"""What a subscription must say (protocol section 3)."""

_TRUE = frozenset({"true", "1", "yes", "on"})


class Serving:
    """What the Chat Servers make of the requests that reach them."""

    def __init__(self, common: Common, chats: Chats, servers: ChatServers, answers: Answers) -> None:
        self._common = common
        self._chats = chats
        self._servers = servers
        self._answers = answers
        self._files = Files(common, chats, answers, self._rotate_if_due)
        self._token_fields = cycle(("secureKey", "userId", "alias", "chatId"))

    def serve(self, ticket: Ticket) -> NodeAnswer | None:
        """The answer; `None` while the session's Chat Server hangs."""
        received, session = ticket.received, ticket.session
        if received.operation is Operation.REQUEST_CHAT:
            return self._request_chat(received, ticket.node)
        if session is None:
            self._common.suffering.unknown_chats += 1
            return self._answers.closed(received.chat_id, "no such chat")
        if not received.news.complete():
            self._common.suffering.incomplete += 1
            return self._answers.refused(session, "userId, secureKey and alias are required")
        self._servers.expire_if_late(session)
        if session.ended is not None:
            return self._after_the_end(session, received)
        place = self._servers.place(session)
        if place is None:
            return self._answers.retry(session, "no Chat Server is available")
        if place.server.phase is Phase.HUNG:
            return None
        if place is not session.process and self._servers.cannot_restore_yet(session):
            self._common.suffering.refused_for_now += 1
            return self._answers.refused(session, "the transcript cannot be loaded")
        if not ticket.wanted():
            self._common.suffering.abandoned += 1
        if (refusal := self._check_identity(session, received)) is not None:
            return refusal
        position = _asked_from(received)
        zero = position == 0 and received.operation is Operation.REFRESH
        if zero:
            self._common.suffering.position_zero += 1
        if not zero or self._common.settings.position_zero_counts:
            if place is not session.process:
                self._servers.restore(session, place, ticket.node)
            self._chats.heard_of(session, ticket.node)
        elif session.process.dead:
            return self._answers.retry(session, "the session is not restored by this request")
        return self._carry_out(session, received, position)

    def _check_identity(self, session: ChatSession, received: Received) -> NodeAnswer | None:
        """Danger 1: a request with a wrong secure key removes the customer at once."""
        news, previous, s = received.news, session.previous, self._common.suffering
        if received.service != session.service:
            s.wrong_service += 1
        if news.alias != session.alias and news.alias not in session.aliases:
            s.wrong_alias += 1
        graced = previous is not None and self._common.now() < previous.until
        doubted = any(news.secure_key == each.secure_key for each in session.doubtful)
        if news.secure_key == session.secure_key:
            session.doubtful = ()
        elif doubted:
            s.forgiven_key += 1
        else:
            replaced = previous is not None and news.secure_key == previous.secure_key
            if not (replaced and graced):
                s.wrong_key += 1
                s.previous_key += replaced
                self._throw_out(session)
                return self._after_the_end(session, received)
        if (
            not doubted
            and news.user_id != session.user_id
            and not (graced and previous is not None and news.user_id == previous.user_id)
        ):
            s.wrong_user_id += 1
            return self._answers.refused(session, "no such user in this chat")
        return None

    def _throw_out(self, session: ChatSession) -> None:
        event = self._chats.add_event(session, participant_left(session, CUSTOMER, code=QUIT_BAD_KEY))
        self._chats.tell_requestor(session, event)
        self._chats.end(session, "wrong_key", lost=True)

    def _request_chat(self, received: Received, node: int | None) -> NodeAnswer:
        takers = self._servers.up()
        if not takers:
            return self._answers.no_server()
        server = min(takers, key=lambda candidate: len(candidate.process.sessions))
        wishes = received.user_data
        device_id = wishes.get("GCTI_GMS_PushDeviceId")
        subscribed = _wished(wishes, "GCTI_Chat_PushSubscribe") and all(map(wishes.get, _MANDATORY))
        names = (received.fields.get("firstName"), received.fields.get("lastName"))
        session = self._chats.open(
            server,
            received.service,
            subscribed=subscribed,
            nickname=received.fields.get("nickname") or " ".join(filter(None, names)) or "Customer",
            node=node,
        )
        session.user_data = wishes
        if subscribed:
            session.device_id = device_id
            session.resend = _wished(wishes, "GCTI_GMS_PushResend")
            session.payload = _wished(wishes, "GCTI_GMS_PushIncludePayload")
            session.notify_requestor = _wished(wishes, "GCTI_GMS_NotifyRequestor")
        if text := received.fields.get("text"):
            self._chats.add_event(session, by_customer(session, "Message", text))
        return self._answers.answered(session, 1)

    def _carry_out(self, session: ChatSession, received: Received, position: int) -> NodeAnswer:
        """The operation itself. The session is known to live and the client to be who it says."""
        fields = received.fields
        match received.operation:
            case Operation.REFRESH:
                session.refreshes += 1
                session.next_index += bool(fields.get("message"))  # typing: an index, but no event kept
            case Operation.SEND:
                self._send(session, received)
            case Operation.START_TYPING | Operation.STOP_TYPING:
                session.next_index += 1
            case Operation.DISCONNECT:
                event = self._chats.add_event(session, participant_left(session, CUSTOMER, code=0))
                self._chats.tell_requestor(session, event)
                session.last_words = True
                self._chats.end(session, "disconnected")
                return self._after_the_end(session, received)
            case Operation.PUSH_URL:
                self._chats.add_event(session, by_customer(session, "PushUrl", fields.get("pushUrl", "")))
            case Operation.UPDATE_NICKNAME:
                session.nickname = fields.get("nickname") or session.nickname
                self._chats.add_event(session, by_customer(session, "NicknameUpdated"))
            case Operation.CUSTOM_NOTICE:
                event = by_customer(session, "CustomNotice", fields.get("message"))
                self._chats.add_event(session, replace(event, attributes=_attributes(received)))
            case Operation.UPDATE_DATA:
                session.user_data = {**(session.user_data or {}), **received.user_data}
            case Operation.READ_RECEIPT:
                # Receipts carry where the customer read to, not which events he wants.
                session.read_to = max(session.read_to, _number(fields.get("transcriptPosition")) or 0)
                position = 0
            case _:
                return self._files.carry_out(session, received, position)
        self._rotate_if_due(session, received.operation)
        return self._answers.answered(session, position, extra=self._placeholder(session, received.news))

    def _send(self, session: ChatSession, received: Received) -> None:
        text = received.fields.get("message", "")
        event = by_customer(session, "Message", text)
        self._common.suffering.doubled_messages += any(
            said.text == text and is_message_of_customer(said) for said in session.events
        )
        self._chats.add_event(
            session,
            replace(event, message_type=received.fields.get("messageType"), attributes=_attributes(received)),
        )

    def _rotate_if_due(self, session: ChatSession, operation: Operation) -> None:
        """A download never comes here: its answer has no room for new tokens. Nor does a refused upload."""
        settings = self._common.settings
        by_count = (
            operation is Operation.REFRESH
            and settings.rotate in (Rotation.REFRESH, Rotation.ALWAYS)
            and session.refreshes % settings.rotate_every == 0
        )
        if by_count or session.rotate_next:
            self._chats.rotate(session)

    def _after_the_end(self, session: ChatSession, received: Received) -> NodeAnswer:
        """Danger 2: each Refresh of a closed chat makes Chat Server try a restoration that fails. The
        first may be how the client learns of the end; the report shows the largest number."""
        if received.operation is Operation.REFRESH:
            session.closed_refreshes += 1
            session.closed_at = self._common.wall_ms()
            s = self._common.suffering
            s.closed_refreshes += 1
            s.closed_refreshes_max = max(s.closed_refreshes_max, session.closed_refreshes)
        if session.last_words:
            session.last_words = False
            return self._answers.answered(session, _asked_from(received))
        return self._answers.closed(session.chat_id, "the chat is closed")

    def _placeholder(self, session: ChatSession, known: TokenNews) -> Mapping[str, object] | None:
        """Something in a token's place, where the client knows the token already."""
        tokens = tokens_of(session)
        if known != tokens or not struck(self._common.settings.placeholder_rate):
            return None
        return {next(self._token_fields): self._common.placeholder()}


def _asked_from(received: Received) -> int:
    """The `transcriptPosition`. Without one that can be read, a Refresh asks for all events and everything else for
    none."""
    position = _number(received.fields.get("transcriptPosition"))
    if position is not None:
        return position
    return 1 if received.operation is Operation.REFRESH else 0


def _number(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _attributes(received: Received) -> object:
    """The `eventAttributes` of a request, which are JSON; a text where they are none."""
    text = received.fields.get("eventAttributes")
    try:
        return text and orjson.loads(text)
    except ValueError:
        return text


def _wished(user_data: Mapping[str, str], key: str) -> bool:
    return user_data.get(key, "").lower() in _TRUE
