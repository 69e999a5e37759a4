"""The answers of a plant's Chat Servers, as GMS passes them on."""

from __future__ import annotations

from collections.abc import Mapping

from asyncchatd.model import TokenNews, replace
from asyncchatd.standin.messages import write_reply
from asyncchatd.standin.plant.parts import ChatSession, NodeAnswer
from asyncchatd.standin.plant.pushing import Common
from asyncchatd.standin.plant.transcript import asked_for, tokens_of
from asyncchatd.wire import ReplyFault

_MISLEADING = TokenNews(user_id="0000000000000000", secure_key="not-the-secure-key", alias="0")


class Answers:
    """The forms an answer can have."""

    def __init__(self, common: Common) -> None:
        self._common = common

    def answered(
        self, session: ChatSession, position: int, extra: Mapping[str, object] | None = None
    ) -> NodeAnswer:
        return NodeAnswer(
            write_reply(
                0,
                tokens_of(session),
                next_position=session.next_index,
                chat_ended=session.ended is not None,
                events=asked_for(session, position),
                extra=extra,
            )
        )

    def closed(self, chat_id: str | None, advice: str) -> NodeAnswer:
        return self._error(2, chat_id, ReplyFault(code=249, advice=advice), chat_ended=True)

    def refused(self, session: ChatSession, advice: str) -> NodeAnswer:
        return self._error(2, session.chat_id, ReplyFault(code=217, advice=advice), chat_ended=None)

    def not_allowed(self, session: ChatSession, advice: str) -> NodeAnswer:
        """HTTP 400 with `errors`, as for an upload that is refused."""
        fault = ReplyFault(code=217, advice=advice)
        return self._error(2, session.chat_id, fault, chat_ended=None, status=400)

    def retry(self, session: ChatSession, advice: str) -> NodeAnswer:
        """statusCode 1: a client that trusts its `chatEnded` gives a live chat up."""
        ended = True if self._common.settings.misleading_errors else None
        return self._error(1, session.chat_id, ReplyFault(code=198, advice=advice), chat_ended=ended)

    def no_server(self) -> NodeAnswer:
        """A new chat cannot be had now."""
        return NodeAnswer(write_reply(1, errors=[ReplyFault(code=1, advice="no Chat Server is available")]))

    def _error(
        self,
        status_code: int,
        chat_id: str | None,
        fault: ReplyFault,
        *,
        chat_ended: bool | None,
        status: int = 200,
    ) -> NodeAnswer:
        misleading = self._common.settings.misleading_errors
        news = replace(_MISLEADING, chat_id=chat_id) if misleading else TokenNews(chat_id)
        position = 1 if misleading else None
        return NodeAnswer(
            write_reply(status_code, news, next_position=position, chat_ended=chat_ended, errors=[fault]),
            status,
        )
