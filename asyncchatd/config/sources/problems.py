"""What is wrong with a configuration file: which key, on which line, and how a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration file."""

    key: str
    """Dotted path, `chat_server[1].health_url`; empty for the file as a whole. Indexes start at 0."""
    line: int | None
    """Line in the file, from 1; `None` when nothing stands there, such as for a missing file."""
    message: str
    """What was expected and what came. Never the value of a secret."""
    nearest: str | None = None
    """For an unknown key: the known one that was probably meant."""


class ConfigError(Exception):
    """The configuration file cannot be used; its text is what a person reads, a line for each problem."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(map(self._sentence, self.problems)))

    def _sentence(self, problem: Problem) -> str:
        place = f"{self.path}:{problem.line}" if problem.line else f"{self.path}"
        subject = f"{place}: {problem.key}: " if problem.key else f"{place}: "
        hint = f"; did you mean {problem.nearest}?" if problem.nearest else ""
        return f"{subject}{problem.message}{hint}"


KeyPath = tuple[str | int, ...]
"""A key as a path: `("chat_server", 1, "health_url")`."""


def dotted(where: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")


def line_of(where: KeyPath, lines: dict[KeyPath, int]) -> int | None:
    """The line of a key, or of the nearest table around it that is written down."""
    for length in range(len(where), 0, -1):
        if (line := lines.get(where[:length])) is not None:
            return line
    return None
