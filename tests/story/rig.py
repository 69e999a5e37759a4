"""Logs as they might have been written, for stories to be told from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from asyncchatd.log.events import Event
from asyncchatd.story.chat import ChatStory
from asyncchatd.story.read import Line
from asyncchatd.story.show import narrate

START = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
CHAT = "0001"


class Log:
    """A log as it might have been written; times are seconds from its start."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __call__(self, second: float, event: str, **fields: object) -> Log:
        when = START + timedelta(seconds=second)
        before = self.lines[-1].time if self.lines else None
        level = Event[event.upper()].level if event.upper() in Event.__members__ else "info"
        self.lines.append(Line(when, level, event, fields, before))
        return self

    def chat(self, second: float, event: str, **fields: object) -> Log:
        return self(second, event, chat_id=CHAT, **fields)

    def foreign(self, second: float, text: str, identifier: str = "systemd") -> Log:
        when = START + timedelta(seconds=second)
        self.lines.append(Line(when, "", "", {"message": text, "identifier": identifier}))
        return self

    def story(self, *, full: bool = False, chat: str = CHAT) -> list[str]:
        return [told.text for told in narrate(ChatStory(chat, full=full), self.lines, None, None)]

    def verdict(self, chat: str = CHAT) -> str:
        story = ChatStory(chat)
        for line in self.lines:
            list(story.hear(line))
        list(story.pause())
        return " ".join(story.verdict(self.lines[-1].time))
