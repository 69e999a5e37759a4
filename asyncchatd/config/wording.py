"""What pydantic finds wrong with a section, in words for the person who wrote it. A value that may be a secret is never
repeated."""

from __future__ import annotations

import difflib
import json
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import ErrorDetails

from asyncchatd.config.settings import TABLES, known_keys, section_models, without_credentials
from asyncchatd.config.sources.problems import KeyPath, Problem, dotted, line_of
from asyncchatd.model import durations


def problem_of(details: ErrorDetails, start: KeyPath, lines: dict[KeyPath, int]) -> Problem:
    """What pydantic found wrong with a section, in our words. `start` is where the section stands, `lines` are those of
    the keys in the file."""
    where = (*start, *details["loc"])
    for table, name in TABLES.items():
        if where[:1] == (name,):
            where = (table, *where[1:])
    if where[-1:] == ("[key]",):
        where = where[:-1]
    if details["type"] == "extra_forbidden":
        return unknown_key(where, lines)
    line = line_of(where, lines)
    if details["type"] == "missing":
        return Problem(dotted(where), line, "required, but missing")
    context = details.get("ctx", {})
    match details["type"]:
        case "value_error":
            message = str(context["error"])
        case "literal_error":
            message = f"expected {context['expected']}"
        case kind:
            message = _EXPECTED.get(kind, details["msg"]).format(**context)
    value = details["input"]
    if value is not None and value != ():
        message += f"; got {_kind(value) if _is_secret(where) else _shown(value)}"
    return Problem(dotted(where), line, message)


_EXPECTED = {
    "string_type": "expected text in quotes",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a number",
    "greater_than": "expected a number above {gt:g}",
    "greater_than_equal": "expected a number of at least {ge:g}",
    "less_than_equal": "expected a number of at most {le:g}",
    "int_parsing_size": "expected a number of at most a thousand million",
    "too_short": "expected at least one",
    "tuple_type": 'expected a list, such as ["..."]',
    "mapping_type": "expected a table",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "bool_type": "expected true or false",
}


def unknown_key(where: KeyPath, lines: dict[KeyPath, int]) -> Problem:
    return Problem(dotted(where), line_of(where, lines), "unknown key", _nearest(where))


def _nearest(where: KeyPath) -> str | None:
    """The known key that was probably meant: of the same table first, then the same name in another one."""
    *table, name = where
    models = section_models()
    siblings = models[str(table[0])].model_fields if table else models
    if close := difflib.get_close_matches(str(name).replace("-", "_"), list(siblings), n=1, cutoff=0.6):
        return dotted((*table, close[0]))
    elsewhere = [key for key in known_keys() if key.endswith(f".{name}")]
    return elsewhere[0] if elsewhere else None


_SECRET_KEYS: tuple[KeyPath, ...] = (
    ("receiver", "secrets"),
    ("control", "token"),
    ("gms", "password"),
    ("gms", "headers"),
)


def _is_secret(where: KeyPath) -> bool:
    return any(where[: len(key)] == key for key in _SECRET_KEYS)


def _shown(value: object) -> str:
    """What came, as the file writes it, shortened."""
    if isinstance(value, str | Path):
        text = json.dumps(without_credentials(str(value)), ensure_ascii=False)
        return text if len(text) <= 80 else f'{text[:76]}..."'
    if isinstance(value, timedelta):
        return durations.text(value)
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return _kind(value)


def _kind(value: object) -> str:
    """What sort of value came, for when it may not be shown."""
    for types, words in _KINDS:
        if isinstance(value, types):
            return words
    return "a date or time"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((str, SecretStr), "text (not shown, it may be a secret)"),
    (bool, "true or false"),
    ((int, float), "a number (not shown, it may be a secret)"),
    ((list, tuple), "a list"),
    (dict, "a table"),
)
