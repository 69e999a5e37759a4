"""Values: nobody changes one, and none shows a secret."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

import pytest

import asyncchatd
from asyncchatd.model.data import TokenNews, Tokens
from asyncchatd.model.values import Value, replace

SECRET = {"secure_key", "nickname", "body", "fields", "user_data", "files"}
"""Fields of whatever value: keys, and what customers wrote."""


def all_values() -> set[type[Value]]:
    for module in walk_packages(asyncchatd.__path__, "asyncchatd."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    return set(Value.__subclasses__())


def test_a_value_cannot_be_changed() -> None:
    tokens = Tokens("chat-1", "user-1", "key-1", "117")
    with pytest.raises(AttributeError, match="immutable"):
        tokens.alias = "118"  # type: ignore[misc]
    assert tokens.alias == "117"
    assert [kind for kind in all_values() if not kind.__struct_config__.frozen] == []


def test_replace_makes_a_changed_copy() -> None:
    tokens = Tokens("chat-1", "user-1", "key-1", "117")
    assert replace(tokens, alias="118") == Tokens("chat-1", "user-1", "key-1", "118")
    assert tokens.alias == "117"
    with pytest.raises(TypeError):
        replace(tokens, aliaz="118")  # type: ignore[call-arg]


def test_values_of_two_kinds_are_never_equal() -> None:
    tokens: object = Tokens("a", "b", "c", "d")
    assert tokens != TokenNews("a", "b", "c", "d")
    assert len({Tokens("a", "b", "c", "d"), Tokens("a", "b", "c", "d")}) == 1


def test_every_value_can_be_printed_and_shows_no_secret() -> None:
    shown = {}
    for kind in all_values():
        names = kind.__struct_fields__
        text = repr(kind(**{name: f"<{name}>" for name in names}))
        assert text.startswith(f"{kind.__name__}(")
        shown[kind.__name__] = {name for name in names if f"{name}='<{name}>'" in text}
        assert shown[kind.__name__] == {name for name in names if f"<{name}>" in text}
    assert shown["Tokens"] == {"chat_id", "user_id", "alias"}
    assert [kind for kind, names in shown.items() if names & SECRET] == []
