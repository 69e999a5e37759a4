"""PgBouncer in front of a PostgreSQL server, in transaction mode: each transaction gets another connection."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from asyncchatd.rehearsing.together.database import PORT, Server
from asyncchatd.stores.postgres.checking import PARAMETERS

PROGRAM = shutil.which("pgbouncer", path=os.defpath + ":/usr/sbin")

CONFIGURATION = """
[databases]
postgres = host={server} port={port} user=postgres
[pgbouncer]
listen_port = {port}
unix_socket_dir = {own}
auth_type = any
pool_mode = transaction
default_pool_size = 20
ignore_startup_parameters = {parameters}
logfile = {own}/log
pidfile = {own}/pid
"""

START_SECONDS = 10.0
LOOK_SECONDS = 0.02

ROLE = """
ALTER ROLE {role} SET search_path = "asyncchatd";
ALTER ROLE {role} SET statement_timeout = '10s';
ALTER ROLE {role} SET lock_timeout = '4s';
ALTER ROLE {role} SET idle_in_transaction_session_timeout = '3s';
ALTER ROLE {role} SET enable_seqscan = off;
ALTER ROLE {role} SET enable_bitmapscan = off;
ALTER ROLE {role} SET jit = off;
"""
"""What a node cannot set by itself there. docs/nodes.md has the same."""


@contextmanager
def pooler(server: Server, *, parameters: str = PARAMETERS) -> Iterator[str]:
    """It runs meanwhile; the `store.url` of the schema `asyncchatd` by it, as docs/nodes.md says."""
    assert PROGRAM is not None, "apt-get install pgbouncer"
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="asyncchatd-pooler-", dir="/tmp") as name:
        own, file = Path(name), Path(name) / "pgbouncer.ini"
        file.write_text(
            CONFIGURATION.format(server=server.directory, port=PORT, own=own, parameters=parameters)
        )
        if user is not None:
            shutil.chown(own, user)
            shutil.chown(file, user)
        process = subprocess.Popen(
            [PROGRAM, "-q", file],
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(process, own / f".s.PGSQL.{PORT}")
            own_parameters = "schema=asyncchatd&presence=off&statement_cache=off"
            yield f"postgresql://postgres@/postgres?host={quote(name)}&port={PORT}&{own_parameters}"
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until it listens: its socket's file is there a moment before."""
    deadline = time.monotonic() + START_SECONDS
    with socket.socket(socket.AF_UNIX) as way:
        while way.connect_ex(str(path)):
            with suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"PgBouncer ended with {process.wait(LOOK_SECONDS)}")
            assert time.monotonic() < deadline, "PgBouncer did not start"
