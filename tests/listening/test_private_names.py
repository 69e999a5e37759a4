"""aiohttp's names that are not public and that the listeners use: setup.cfg holds its minor version for their sake.

Whoever tries another minor version reads here first what it lacks.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

import asyncchatd

LISTENING = Path(asyncchatd.__file__).parent / "listening"

OF_A_SERVER = {"_connections", "_kwargs", "_loop"}
OF_A_CONNECTION = {
    "_messages",
    "_next_keepalive_close_time",
    "_parser",
    "_request_in_progress",
    "_waiter",
}
OF_TYPESHED = {"_Decompress"}
"""Of zlib, for the type checker alone."""
KEYWORDS = {"access_log", "auto_decompress", "keepalive_timeout", "lingering_time", "logger"}
"""Handed through `web.AppRunner` to each connection. A server of aiohttp's that does not know one leaves all away."""


def bare_server() -> web.Server:
    return web.Server(lambda request: web.Response(), loop=asyncio.get_running_loop())  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", sorted(OF_A_SERVER))
async def test_a_server_of_aiohttps_has_the_private_name(name: str) -> None:
    assert hasattr(bare_server(), name)


@pytest.mark.parametrize("name", sorted(OF_A_CONNECTION))
async def test_a_connection_of_aiohttps_has_the_private_name(name: str) -> None:
    assert hasattr(RequestHandler(bare_server(), loop=asyncio.get_running_loop()), name)


@pytest.mark.parametrize("name", sorted(KEYWORDS))
def test_a_connection_of_aiohttps_takes_the_keyword(name: str) -> None:
    assert name in inspect.signature(RequestHandler).parameters


def test_no_private_name_is_used_that_is_not_looked_for_here() -> None:
    used = {name for file in LISTENING.glob("*.py") for name in foreign_names(ast.parse(file.read_text()))}
    assert used == OF_A_SERVER | OF_A_CONNECTION | OF_TYPESHED


def foreign_names(tree: ast.Module) -> Iterator[str]:
    """The private attributes that a module uses and none of its classes sets or defines."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {name for each in classes for name in own_names(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in own and is_private(node.attr):
            yield node.attr


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(of: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(of):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
