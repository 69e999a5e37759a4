"""Reading the configuration file, `etc/asyncchatd.toml`.

`load` either returns a `Settings` on which the daemon can run, or raises one `ConfigError` that lists
everything wrong with the file at once: which key, on which line, what was expected, what came, and the
nearest known key for a misspelt one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import (
    ValidationError,
)
from pydantic_core import ErrorDetails

from asyncchatd.config.sections.consumers import asked_twice
from asyncchatd.config.sections.listeners import ControlSettings
from asyncchatd.config.settings import OPTIONAL, SECTIONS, TABLES, Settings
from asyncchatd.config.sources.document import read_toml
from asyncchatd.config.sources.problems import ConfigError, KeyPath, Problem, dotted, line_of
from asyncchatd.config.values.addresses import Listen
from asyncchatd.config.values.kinds import alias_of, node_url
from asyncchatd.config.wording import problem_of, unknown_key


def load(path: Path) -> Settings:
    """Read the configuration file; the directory it lies in is the base of every relative path.

    Raises `ConfigError` with all problems at once.
    """
    data, text = read_toml(path)
    return _validated(path, data, text)


def load_control(path: Path) -> ControlSettings:
    """Read only what is said of the control API, which is all a command needs that talks to a daemon.

    An operator at a shell has neither the daemon's credentials nor its state directory, so the rest of
    the file, which may refer to them, is not looked at, and files of the daemon's that cannot be read are
    taken for given: there are no `tokens` then. Raises `ConfigError`.
    """
    data, text = read_toml(path)
    context = {"directory": path.resolve().parent, "as_client": True}
    try:
        return ControlSettings.model_validate(data.get("control", {}), context=context)
    except ValidationError as error:
        problems = [problem_of(details, ("control",), _lines(text)) for details in error.errors()]
        raise ConfigError(path, problems) from None


def _validated(path: Path, data: dict[str, object], text: str) -> Settings:
    lines = _lines(text)
    problems = [unknown_key((key,), lines) for key in data if key not in (*SECTIONS, *TABLES)]
    problems += _duplicates(data, lines)
    directory = path.resolve().parent
    tree = {name: data.get(name, {}) for name in SECTIONS if name in data or name not in OPTIONAL}
    tree |= {name: data.get(table, []) for table, name in TABLES.items()}
    tree |= {"path": path, "directory": directory}
    try:
        settings = Settings.model_validate(tree, context={"directory": directory})
    except ValidationError as error:
        found = error.errors()
        wrong = [details for details in found if not _follows(details, found)]
        raise ConfigError(path, problems + [problem_of(details, (), lines) for details in wrong]) from None
    problems += [*_same_addresses(settings, lines), *_asked_twice(settings, lines)]
    if problems:
        raise ConfigError(path, problems)
    return settings


def _follows(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Whether pydantic counts as an error what only follows from another one: while interval is wrong no default of
    fast_interval is made, and what is wrong in a list leaves it too short."""
    where = details["loc"]
    in_it = (
        each["loc"] for each in found if len(each["loc"]) > len(where) and each["loc"][: len(where)] == where
    )
    return details["type"] == "default_factory_not_called" or (details["type"] == "too_short" and any(in_it))


def _same_addresses(settings: Settings, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    first: dict[Listen, str] = {}
    for name, its in settings.listeners.items():
        other = first.setdefault(its.listen, name)
        if other != name and its.listen.port != 0:
            line = line_of((name, "listen"), lines)
            yield Problem(f"{name}.listen", line, f"expected another address than {other}.listen")


def _asked_twice(settings: Settings, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    if both := asked_twice(settings.consumers):
        place = [each.name for each in settings.consumers].index(both[1])
        where = ("consumer", place, "acknowledges")
        names = " and ".join(both)
        message = f"expected one consumer with acknowledges for the chats of a service, not {names} both"
        yield Problem(dotted(where), line_of(where, lines), message)


def _duplicates(data: dict[str, object], lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """What must be unique and is not; looked for in the raw file, so that other problems do not hide it."""
    servers = data.get("chat_server")
    gms = data.get("gms")
    nodes = gms.get("nodes") if isinstance(gms, dict) else None
    lists: list[tuple[KeyPath, str | None, object, Callable[[object], object]]] = [
        (("chat_server",), "name", servers, lambda name: name),
        (("chat_server",), "app_dbid", servers, alias_of),
        (("consumer",), "name", data.get("consumer"), lambda name: name),
        (("gms", "nodes"), None, nodes, lambda node: node_url(node) if isinstance(node, str) else None),
    ]
    for start, leaf, items, identity in lists:
        seen: dict[str, KeyPath] = {}
        for index, item in enumerate(items if isinstance(items, list) else ()):
            value = item.get(leaf) if leaf and isinstance(item, dict) else item
            try:
                same = identity(value)
            except ValueError:
                continue  # wrong in itself, and reported as that
            where = (*start, index, leaf) if leaf else (*start, index)
            if isinstance(same, str) and (first := seen.setdefault(same, where)) != where:
                message = f"expected each only once, but {json.dumps(same)} is {dotted(first)} already"
                yield Problem(dotted(where), line_of(where, lines), message)


def _lines(text: str) -> dict[KeyPath, int]:
    """On which line each table header and key stands. The text is valid TOML, so a plain scan will do."""
    lines: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    closing: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            closing = None if closing in line else closing
        elif header := _HEADER.match(line):
            table = _parts(header[2])
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                lines.setdefault(table, number)
            if table in arrays:
                table = (*table, arrays[table])
            elif table[:1] in arrays:
                table = (*table[:1], arrays[table[:1]], *table[1:])
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            lines.setdefault((*table, *_parts(entry[1])), number)
            closing = next((quote for quote in ('"""', "'''") if line.count(quote) == 1), None)
    return lines


_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEY})\s*\]")
_ENTRY = re.compile(rf"\s*({_KEY})\s*=")


def _parts(key: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, key))
