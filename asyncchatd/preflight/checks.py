"""What `asyncchatd check` finds out, as plain results for the CLI to print.

It looks at the file alone: what is wrong in it, and what is valid but probably not meant; at the world that the file
describes looks `connecting.py`. Every finding that is not fine says what to do next.
"""

from __future__ import annotations

from pathlib import Path

from asyncchatd.config import ConfigError, Settings, load
from asyncchatd.model import Finding, Level, findings
from asyncchatd.preflight.connected import named_store
from asyncchatd.preflight.doubts import doubts
from asyncchatd.stores import StoreError


def check(path: Path) -> list[Finding]:
    """Everything that can be said of the configuration without leaving this host's files."""
    try:
        settings = load(path)
    except ConfigError as error:
        return [
            findings.error(
                problem.key,
                f"{path}: " * (not problem.key)
                + f"line {problem.line}: " * (problem.line is not None)
                + problem.message,
                f"did you mean {problem.nearest}?" if problem.nearest else "correct it and check again",
            )
            for problem in error.problems
        ]
    found = remarks(settings)
    if not any(finding.level is Level.ERROR for finding in found):
        found.insert(0, findings.ok("", f"{path} is valid"))
    return found


def remarks(settings: Settings) -> list[Finding]:
    """What can be said of a configuration that is valid, from this host's files alone."""
    found = list(doubts(settings))
    try:
        named_store.unopened(settings)
    except StoreError as trouble:
        found.append(named_store.impossible(trouble))
    return found
