"""The commands of the store's own: copies of it, and what must be done with an old one.

store backup FILE              a copy that is whole, while the daemon runs
store distrust --before TIME   after an old copy was put back: no session is pinged with an old key
store accept                   an empty or older one took the place of the one of before, and that is right
store downgrade COPY           before an older asyncchatd is installed: what it can read, as of now
store migrate                  as the owner of a PostgreSQL schema: bring its tables up to date
store copy FROM TO             all of it into another store, of another kind for instance, which goes on with it
store unmove STORE             what was copied elsewhere is used again all the same
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

from asyncchatd import log
from asyncchatd.cli.loops import run, until_stopped
from asyncchatd.cli.options import FILE, config_option, json_option
from asyncchatd.config import ConfigError, Settings, keys_in, load, load_contact
from asyncchatd.control.clients.blocking import BlockingClient
from asyncchatd.control.clients.calls import ClientError
from asyncchatd.model import Ms
from asyncchatd.stores import Store, StoreError, copy_rows, make_store
from asyncchatd.stores.sqlite import Saved, back_up, downgrade
from asyncchatd.terminal import say, say_json

SAID_EVERY = 100_000
"""Rows of a table between two words of how far a copy is."""


@click.group()
def store() -> None:
    """Copies of the store, an old one put back, another kind of store, and the way back to an older asyncchatd.

    \b
    Example:
      asyncchatd store backup /var/backups/asyncchatd.db
      asyncchatd store distrust --before 2026-11-27T03:00:00Z --dry-run
      asyncchatd store copy /etc/asyncchatd/asyncchatd.toml postgresql://chats@db/chats
    """
    # Standard output is for what was asked. Not the warnings: of a backup they advise what is being done here.
    log.configure("error", "console", output=sys.stderr.buffer)


@store.command(short_help="A copy that is whole, while the daemon runs.")
@click.argument("file", type=FILE)
@config_option
@json_option
def backup(file: Path, config: Path, as_json: bool) -> None:
    """Copy the database into a new FILE while the daemon runs.

    A copy made by cp lacks what still stands in the write-ahead log. This one is checked, and for its owner
    alone. Secure keys in it are encrypted as in the database; the file with the keys is not in it.
    """
    at = datetime.now(UTC)
    saved = _backed_up(_loaded(config), file, round(at.timestamp() * 1000))
    when = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    _say(
        as_json,
        {"file": str(saved.file), "sessions": saved.sessions, "as_of": when},
        f"{saved.file}: {saved.sessions:,} sessions as of {when}, checked.",
        f"Once it is put back: asyncchatd store distrust --before {when}",
    )


@store.command(short_help="The store that took the place of the one of before is right.")
@config_option
@json_option
def accept(config: Path, as_json: bool) -> None:
    """Take the store as it is, where an empty, older or another database lies in the place of the one of before.

    Until then the daemon that runs says so, in status and by an alert. Before you accept an older one: may keys in it
    have been replaced since? See store distrust.
    """

    try:
        answer = BlockingClient.of(load_contact(config)).accept_store()
    except (ConfigError, ClientError) as error:
        raise click.ClickException(str(error)) from None
    words = "The store is accepted as it is." if answer.get("changed") else "There was nothing to accept."
    _say(as_json, dict(answer), words)


@store.command(short_help="After an old copy was put back: ping nobody with an old key.")
@click.option(
    "--before",
    metavar="TIME",
    required=True,
    help='Sessions of which there is no news since then; as 2026-11-27T03:00:00Z, or "now".',
)
@click.option("--dry-run", is_flag=True, help="Only count them.")
@config_option
@json_option
def distrust(before: str, dry_run: bool, config: Path, as_json: bool) -> None:
    """Forget the keys of all sessions without news since TIME.

    GMS may have replaced keys since a copy was made, and a wrong key throws the customer out. These
    sessions are kept and not pinged until a push or a registration tells their tokens. The daemon must not
    run, of several nodes none.
    """
    count = _distrusted(_loaded(config), _moment(before), dry_run)
    found = "would wait" if dry_run else "wait"
    _say(
        as_json,
        {"sessions": count, "dry_run": dry_run},
        f"{count:,} sessions {found} unpinged until a push or a registration tells their tokens",
    )


@store.command("downgrade", short_help="Write what is known now into the copy of before an upgrade.")
@click.argument("copy", type=FILE)
@config_option
@json_option
def store_downgrade(copy: Path, config: Path, as_json: bool) -> None:
    """Write what is known now into COPY, what the database was before an upgrade.

    The start that upgraded the database kept COPY beside it: asyncchatd.db.schema-N-TIME. The older asyncchatd
    reads it, and pings no session with an old key then. What it has no place for, as the transcript, stays
    behind. The daemon must not run.
    """
    settings = _with_a_file(_loaded(config), "it has no copy")
    try:
        saved = downgrade(settings.store_url, settings.directory, copy)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    if saved.damage is not None:
        raise click.ClickException(f"{copy} is damaged: {saved.damage}; look at the disk")
    _say(
        as_json,
        {"file": str(saved.file), "sessions": saved.sessions},
        f"{saved.file}: {saved.sessions:,} sessions as they are now. Put it in the database's place, and start the"
        " older asyncchatd: docs/upgrading.md",
    )


@store.command("migrate", short_help="As the owner of a PostgreSQL schema: bring its tables up to date.")
@click.argument("place", metavar="STORE")
@click.option(
    "--runner", metavar="USER", help="Give this user of the database what a daemon needs, and no more."
)
@click.option(
    "--reader", metavar="USER", help="Let this user read it, but keys and what customers wrote, and no more."
)
@json_option
def store_migrate(place: str, runner: str | None, reader: str | None, as_json: bool) -> None:
    """Bring the tables of STORE up to date: a URL with the user who owns them, or a configuration that names it.

    A daemon whose user owns the tables does it at its start. Where it may only use them, this is run before: before the
    first start, and before each upgrade; it says where nothing is to be done. Nodes of the version before may be
    running.

    \b
    Example:
      PGPASSFILE=owner.pgpass asyncchatd store migrate postgresql://owner@db/chats --runner chats
    """
    named = _named(place, None)
    try:
        migrated = run(lambda: named.store().migrate(runner=runner, reader=reader))
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    if migrated is None:
        raise click.ClickException(
            f"{urlsplit(named.url).scheme}: such a store is brought up to date when the daemon starts; start it"
        )
    words = [
        f"The tables are of version {migrated.now} already."
        if migrated.before == migrated.now
        else f"The tables went from version {migrated.before} to {migrated.now}."
    ]
    if runner is not None:
        words.append(f"{runner} may use them, and change none.")
    if reader is not None:
        words.append(f"{reader} may read them, but no keys and nothing that customers wrote.")
    _say(
        as_json,
        {"before": migrated.before, "now": migrated.now, "runner": runner, "reader": reader},
        " ".join(words),
    )


@store.command("copy", short_help="All of it into another store, which goes on with it.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--from-keys", type=FILE, metavar="FILE", help="Keys that FROM is encrypted with, where it is a URL."
)
@click.option(
    "--to-keys", type=FILE, metavar="FILE", help="Encrypt TO with these; default with the keys of FROM."
)
@click.option("--in-the-clear", is_flag=True, help="Do not encrypt TO.")
@json_option
def store_copy(
    source: str,
    target: str,
    from_keys: Path | None,
    to_keys: Path | None,
    in_the_clear: bool,
    as_json: bool,
) -> None:
    """Copy all of the store FROM into the store TO, which is empty, and mark FROM as moved.

    Each is a store's URL, or a configuration that names it, and its keys. From SQLite to PostgreSQL, and back. No
    daemon may run on either. PostgreSQL is filled as the owner of the tables. Afterwards a daemon is started with TO,
    and goes on where FROM was left; none starts on FROM. What was copied is read back and compared first. A copy that
    fails or is stopped leaves both as they were.

    \b
    Example:
      asyncchatd store copy /etc/asyncchatd/asyncchatd.toml postgresql://chats@db/chats
      asyncchatd store copy sqlite:////var/lib/asyncchatd/asyncchatd.db new.toml --from-keys store.keys
    """
    if in_the_clear and to_keys is not None:
        raise click.UsageError("--in-the-clear and --to-keys do not go together")
    leaving = _named(source, from_keys)
    arriving = _named(target, to_keys)
    if "://" in target and to_keys is None:
        arriving = arriving._replace(keys=() if in_the_clear else leaving.keys)
    elif in_the_clear:
        raise click.UsageError(
            "--in-the-clear is for a URL: a configuration says itself whether TO is encrypted"
        )

    def told(table: str, count: int) -> None:
        if not as_json and count % SAID_EVERY == 0:
            say(f"{count:,} rows of {table}", error=True)

    try:
        carriers = leaving.store().carrier(), arriving.store().carrier()
        copied = until_stopped(copy_rows(*carriers, told=told))
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    counts = copied.counts
    _say(
        as_json,
        {"from": carriers[0].shown, "to": carriers[1].shown, "rows": counts, "digest": copied.digest},
        f"{carriers[1].shown}: {counts['session']:,} sessions, {counts['journal']:,} waiting pushes,"
        f" {counts['event']:,} events, {sum(counts.values()):,} rows in all, compared (digest {copied.digest}).",
        f"{carriers[0].shown} is marked as moved. Name the other one in store.url, and start: docs/nodes.md",
    )


@store.command("unmove", short_help="What was copied elsewhere is used again all the same.")
@click.argument("place", metavar="STORE")
@json_option
def store_unmove(place: str, as_json: bool) -> None:
    """Let STORE be used again after it was copied elsewhere: a URL, or a configuration that names it.

    What happened since in the other one is not in it. Where a daemon has used that one, GMS may have replaced keys:
    copy it back instead, or run store distrust before the start. Never use both.
    """
    carrier = _named(place, None).store().carrier()
    try:
        moved = run(carrier.unmove)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    _say(
        as_json,
        {"store": carrier.shown, "moved": moved},
        f"{carrier.shown} was not marked as moved."
        if moved is None
        else f"{carrier.shown} may be used again, as of when it was copied to {moved}. Do not use both.",
    )


class _Named(NamedTuple):
    """A store that a command names."""

    url: str
    directory: Path
    keys: tuple[bytes, ...]
    password_file: Path | None = None

    def store(self) -> Store:
        try:
            return make_store(
                self.url, directory=self.directory, keys=self.keys, password_file=self.password_file
            )
        except StoreError as error:
            raise click.ClickException(str(error)) from error


def _named(name: str, keys: Path | None) -> _Named:
    """A store by its URL, or by a configuration."""
    try:
        given = () if keys is None else keys_in(keys)
    except ValueError as error:
        raise click.ClickException(f"{keys}: {error}") from None
    if "://" in name:
        return _Named(name, Path.cwd(), given)
    settings = _loaded(Path(name))
    return _Named(
        settings.store_url, settings.directory, given or settings.store_keys, settings.store_password_file
    )


def _with_a_file(settings: Settings, otherwise: str) -> Settings:
    if urlsplit(settings.store_url).scheme != "sqlite":
        raise click.ClickException(f"{settings.store.shown} has no file; {otherwise}")
    return settings


def _backed_up(settings: Settings, file: Path, copied_at: Ms) -> Saved:
    _with_a_file(settings, "its own tools make its backups")
    try:
        return back_up(settings.store_url, settings.directory, file, copied_at)
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def _distrusted(settings: Settings, before: Ms, dry_run: bool) -> int:
    async def work() -> int:
        store = make_store(
            settings.store_url,
            directory=settings.directory,
            keys=settings.store_keys,
            password_file=settings.store_password_file,
        )
        if not dry_run:
            await store.carrier().unused()
        await store.open()
        try:
            return await store.distrust(before=before, dry_run=dry_run)
        finally:
            await store.close()

    try:
        return run(work)
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def _moment(text: str) -> Ms:
    try:
        at = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
        if at.tzinfo is None:
            raise ValueError
        return round(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f'{text!r}: expected a time with its zone, as 2026-11-27T03:00:00Z or 2026-11-27T04:00:00+01:00, or "now"',
            param_hint="--before",
        ) from None


def _loaded(config: Path) -> Settings:
    try:
        return load(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def _say(as_json: bool, data: dict[str, object], *words: str) -> None:
    if as_json:
        say_json(data)
    else:
        for line in words:
            say(line)
