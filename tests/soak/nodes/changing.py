"""What an operator changes node by node under load: faults of the soak of several nodes."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncchatd
from asyncchatd.config import keys_in
from asyncchatd.rehearsing.together.node import Node
from asyncchatd.rehearsing.trial import until
from asyncchatd.stores.postgres import connect, place_of
from asyncchatd.stores.postgres.wire import Connection
from asyncchatd.stores.sealing import SealError, event_mark, sealings

from .site import KEYS, TESTS, Soak, new_key, write_keys

RESEALED_SECONDS = 60.0
"""In which all is under another key once the last node has it: it begins 10 s after that node's start."""

NEXT_VERSION = f"{asyncchatd.__version__}.post1"
ADDED = "ALTER TABLE session ADD COLUMN of_the_next text"
"""The migration of the next version."""


async def keys(soak: Soak) -> None:
    """a Chat Server is lost while each node is given another store key, and another while the old one is taken away

    All that is in the database is under the new one then, and opens. `asyncchatd check --connect` finds nothing wrong
    with the store on any node meanwhile.
    """
    gateway = await _gateway_keys(soak)
    key, begins = new_key(), _ends(soak)
    old = {node: (node.directory / KEYS).read_text().split() for node in soak.nodes}
    await one_after_another(soak, lambda node: write_keys(node, [key, *old[node]]))
    soak.broken += await _found_by_check(soak)
    done = await until(
        lambda: any(node.said("store_resealed", begins[node]) for node in soak.nodes), RESEALED_SECONDS
    )
    soak.broken += ["not all is sealed anew"] * (not done)
    await one_after_another(soak, lambda node: write_keys(node, [key]))
    soak.broken += await _found_by_check(soak)
    soak.broken += await _not_under_the_key(soak)
    soak.broken += ["the keys of the gateway are others"] * (await _gateway_keys(soak) != gateway)
    for node in soak.nodes:
        soak.broken += [f"{node.name} found a damaged key"] * bool(
            node.said("secure_key_damaged", begins[node])
        )
    _no_push_refused(soak)


async def upgrade(soak: Soak) -> None:
    """a Chat Server is lost while each node is brought to the next version, and another while it is brought back"""
    usual = {node: node.environ for node in soak.nodes}
    newer = next_version(soak.nodes[0].directory.parent / "next")
    await one_after_another(
        soak, lambda node: setattr(node, "environ", usual[node] | newer), version=NEXT_VERSION
    )
    await one_after_another(
        soak, lambda node: setattr(node, "environ", usual[node]), version=asyncchatd.__version__
    )
    _no_push_refused(soak)


async def one_after_another(
    soak: Soak, change: Callable[[Node], None], *, version: str = asyncchatd.__version__
) -> None:
    """A Chat Server is lost while each node is stopped, changed and started again. `version` runs then."""
    losing = asyncio.create_task(soak.lose_a_server())
    for node in soak.nodes:
        begins = node.log.stat().st_size
        await node.stop()
        change(node)
        await node.start()
        [starting] = node.said("daemon_starting", begins)
        soak.broken += [f"{node.name} runs {starting['version']}, not {version}"] * (
            starting["version"] != version
        )
    await losing


def next_version(tree: Path) -> dict[str, str]:
    """Make the next version of asyncchatd, which adds a column, in a new directory. The environment that runs it."""
    if not tree.exists():
        package = tree / "asyncchatd"
        shutil.copytree(
            Path(asyncchatd.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
        )
        own = package / "__init__.py"
        own.write_text(own.read_text().replace(f'"{asyncchatd.__version__}"', f'"{NEXT_VERSION}"'))
        with (package / "stores/postgres/shared/schema.py").open("a") as schema:
            schema.write(f'\nMIGRATIONS = (*MIGRATIONS, "{ADDED}")\n')
    # The directory in which the soak runs has the other version: it is not looked at.
    return {"PYTHONPATH": f"{tree}:{TESTS}", "PYTHONSAFEPATH": "1"}


async def _not_under_the_key(soak: Soak) -> list[str]:
    """What is in the database and should not be: what does not open with the key that the nodes have, or is no key."""
    [sealing, *_] = sealings(keys_in(soak.nodes[0].directory / KEYS))
    async with _database(soak) as connection:
        key_id, former = await connection.row("SELECT key_id, former_key_ids FROM store") or (None, [])
        incomplete = await connection.value("SELECT count(*) FROM session WHERE state=0")
        rows = await connection.rows(
            "SELECT chat_id, device_id, secure_key FROM session WHERE state=1"
            " UNION ALL SELECT chat_id, device_id, secure_key FROM journal WHERE secure_key IS NOT NULL"
        )
        events = await connection.rows(
            "SELECT coalesce(chat_id, ''), kind, body, likeness FROM event"
            " LEFT JOIN session ON session.id=event.session WHERE body IS NOT NULL"
        )
    shut = shut_events = 0
    for chat_id, kind, body, likeness in events:
        try:
            shut_events += event_mark(sealing, kind, sealing.open_event(body, chat_id)) != likeness
        except SealError:
            shut_events += 1
    for chat_id, device_id, secure_key in rows:
        try:
            shut += sealing.open(secure_key, chat_id, device_id) is None
        except SealError:
            shut += 1
    soak.figures |= {"under_the_new_key": len(rows) - shut, "incomplete": incomplete, "events": len(events)}
    broken = [f"of {len(rows)} secure keys {shut} are not under the new store key"] * bool(shut)
    broken += [f"of {len(events)} events {shut_events} are not under the new store key"] * bool(shut_events)
    broken += [f"{incomplete} sessions are incomplete"] * bool(incomplete)
    return broken + [f"the store is under {key_id}, and under {former} before"] * (
        key_id != sealing.key_id or bool(former)
    )


async def _gateway_keys(soak: Soak) -> list[str]:
    """Which keys the gateway of the nodes made its clients' keys with, as the database says."""
    async with _database(soak) as connection:
        return list(await connection.value("SELECT gateway_keys FROM store"))


@asynccontextmanager
async def _database(soak: Soak) -> AsyncIterator[Connection]:
    connection = await connect(place_of(soak.database.url("asyncchatd")).address)
    try:
        yield connection
    finally:
        await connection.close()


async def _found_by_check(soak: Soak) -> list[str]:
    """What `asyncchatd check --connect` finds wrong with the store, node by node."""
    wrong = []
    for node in soak.nodes:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncchatd", "check", "--connect", "--json"),
            *("--config", str(node.directory / "asyncchatd.toml")),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        wrong += [
            f"check on {node.name}: {each['key']}: {each['message']}"
            for each in json.loads(told)
            if each["key"].startswith("store.") and each["level"] in ("error", "warning")
        ]
    return wrong


def _no_push_refused(soak: Soak) -> None:
    failed = soak.plant.plant.report().pushes_failed
    soak.broken += [f"{failed} pushes were not taken"] * bool(failed)


def _ends(soak: Soak) -> dict[Node, int]:
    return {node: node.log.stat().st_size for node in soak.nodes}
