"""The files of a chat: what a customer may upload, fetch and delete, and what is refused.

Limits are those of Chat Server's section `client-file-transfer`, answers those of real ones (protocol section 7).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from asyncchatd.model import replace
from asyncchatd.standin.files import PlantFile
from asyncchatd.standin.messages import write_event
from asyncchatd.standin.plant.answers import Answers
from asyncchatd.standin.plant.chats import Chats
from asyncchatd.standin.plant.parts import ChatSession, NodeAnswer
from asyncchatd.standin.plant.pushing import Common
from asyncchatd.standin.plant.transcript import AGENT, by_customer
from asyncchatd.standin.requests import Received
from asyncchatd.wire import Operation


class Files:
    """What a Chat Server makes of the operations on files. `before_answer` is called before an answer that tells the
    tokens."""

    def __init__(
        self,
        common: Common,
        chats: Chats,
        answers: Answers,
        before_answer: Callable[[ChatSession, Operation], None],
    ) -> None:
        self._common = common
        self._chats = chats
        self._answers = answers
        self._before_answer = before_answer

    def carry_out(self, session: ChatSession, received: Received, position: int) -> NodeAnswer:
        """The answer to one of the four; HTTP 400 to an upload that is not allowed."""
        match received.operation:
            case Operation.FILE_LIMITS:
                return self._limits(session)
            case Operation.FILE_UPLOAD:
                return self._upload(session, received, position)
            case Operation.FILE_DOWNLOAD:
                return self._download(session, received)
            case _:
                return self._delete(session, received, position)

    def _limits(self, session: ChatSession) -> NodeAnswer:
        """As captured on a real site: one notice without an index, and every value a text."""
        settings = self._common.settings
        limits = {
            "upload-max-files": settings.upload_max_files,
            "upload-max-file-size": settings.upload_max_file_size,
            "upload-max-total-size": settings.upload_max_total_size,
            "upload-file-types": settings.upload_file_types,
            "upload-need-agent": str(settings.upload_need_agent).lower(),
            "download-attempts": settings.download_attempts,
            "delete-file": "odd",
            "used-upload-max-files": session.uploads,
            "used-upload-max-total-size": session.uploaded_bytes,
            "used-download-attempts": session.downloads,
        }
        notice = replace(
            by_customer(session, "Notice", "file-client-cfg-get"),
            utc_time=self._common.wall_ms(),
            user_data={name: str(value) for name, value in limits.items()},
        )
        self._before_answer(session, Operation.FILE_LIMITS)
        return self._answers.answered(session, 0, extra={"messages": [write_event(notice)]})

    def _upload(self, session: ChatSession, received: Received, position: int) -> NodeAnswer:
        file = received.files.get("file") or next(iter(received.files.values()), None)
        if file is None:
            return self._answers.not_allowed(session, "expected a part with a file")
        if (why := self._refusal(session, file)) is not None:
            return self._answers.not_allowed(session, why)
        session.uploads += 1
        session.uploaded_bytes += file.size
        file_id = keep(session, file)
        event = by_customer(session, "FileUploaded", file_id)
        self._chats.add_event(
            session, replace(event, user_data=described(file_id, file) | received.user_data)
        )
        self._before_answer(session, received.operation)
        return self._answers.answered(session, position, extra={"userData": {"file-id": file_id}})

    def _refusal(self, session: ChatSession, file: PlantFile) -> str | None:
        settings = self._common.settings
        types = settings.upload_file_types.split(":") if settings.upload_file_types else []
        if settings.upload_need_agent and not any(e.participant_id == AGENT for e in session.events):
            return "no agent is there to take a file"
        if session.uploads >= settings.upload_max_files:
            return "too many files"
        if file.size > settings.upload_max_file_size:
            return "the file is too large"
        if session.uploaded_bytes + file.size > settings.upload_max_total_size:
            return "the files are too large together"
        if types and file.name.rpartition(".")[2].lower() not in types:
            return "files of this type are not allowed"
        return None

    def _download(self, session: ChatSession, received: Received) -> NodeAnswer:
        file = (session.files or {}).get(received.file_id or "")
        if file is None:
            return self._answers.refused(session, "no such file")
        if session.downloads >= self._common.settings.download_attempts:
            return self._answers.not_allowed(session, "too many downloads")
        session.downloads += 1
        return NodeAnswer(b"", content_type="application/octet-stream", file=file)

    def _delete(self, session: ChatSession, received: Received, position: int) -> NodeAnswer:
        file_id = received.file_id or ""
        file = (session.files or {}).get(file_id)
        if file is None:
            return self._answers.refused(session, "no such file")
        session.files = {name: kept for name, kept in (session.files or {}).items() if name != file_id}
        event = by_customer(session, "FileDeleted", file_id)
        self._chats.add_event(session, replace(event, user_data=described(file_id, file)))
        self._before_answer(session, received.operation)
        return self._answers.answered(session, position)


def keep(session: ChatSession, file: PlantFile) -> str:
    """Adds a file to a chat; its id."""
    file_id = secrets.token_hex(8).upper()
    session.files = {**(session.files or {}), file_id: file}
    return file_id


def described(file_id: str, file: PlantFile) -> dict[str, str]:
    """A file, as the `userData` of its event describes it."""
    return {
        "file-id": file_id,
        "file-name": file.name,
        "file-size": str(file.size),
        "file-source": "ucs",
        "file-upload-type": "file-system",
    }
