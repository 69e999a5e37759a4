"""One of several daemons that share a store: started, stopped, killed and started again with one configuration."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from asyncchatd.config import Listen
from asyncchatd.rehearsing.trial import LOG_FILE, Sections, configuration, ready, said, stopped
from asyncchatd.standin import StandIn

TETHERED = ("-m", "asyncchatd.tether", "run", "--config")
"""What Python is started with; the configuration's path follows."""


class Node:
    """A node. It has a directory of its own, with configuration, log and the socket of its control API."""

    def __init__(
        self,
        number: int,
        directory: Path,
        plant: StandIn,
        sections: Sections,
        *,
        pages: Mapping[str, str] | None = None,
        command: Sequence[str] = TETHERED,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`sections` have the URL of the store, to which its name is added. `pages` are the health pages that it looks
        at, by Chat Server; without them the plant's."""
        self.name = f"node-{number + 1}"
        self.directory = directory / self.name
        self.directory.mkdir()
        self.control = Listen(path=str(self.directory / "control.sock"))
        self.log = self.directory / LOG_FILE
        self.push_url = ""
        """Of the last start; empty before."""
        self.gateway = ""
        """Base URL for chat clients, of the last start; empty without a gateway."""
        self.exit_status: int | None = None
        """With which it ended last."""
        self._secret = secrets.token_urlsafe(24)
        self._command = command
        self.environ = dict(environ or {})
        """Added to the environment, from the next start on."""
        self._process: asyncio.subprocess.Process | None = None
        self._file = self.directory / "asyncchatd.toml"
        store = sections["store"]
        own = {**sections, "store": {**store, "url": f"{store['url']}&node={self.name}"}}
        self._file.write_text(configuration(plant, self.control, self._secret, own, (), pages))
        self._file.chmod(0o600)

    @property
    def pid(self) -> int:
        """Of its process, which runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it; returns once it is ready. Raises `TrialError` when it does not come to that."""
        begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._command, str(self._file),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,  # it ends when that closes
                env={**os.environ, **self.environ}, start_new_session=True,
            )  # fmt: skip
        told = await ready(self._process, self.log, begins)
        self.push_url = f"http://{told['receiver'][0]}/push/{self._secret}"
        self.gateway = f"http://{told['gateway'][0]}/genesys" if told["gateway"] else ""

    def said(self, event: str, since: int = 0) -> list[dict[str, Any]]:
        """The lines of its log with this event, from a place of the file on."""
        return said(self.log, event, since)

    def pause(self) -> None:
        """It stands still from now on (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """It goes on where it stood still (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """It ends without a word (SIGKILL)."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        """Stop it as an operator does, where it runs, and wait until it has."""
        process, self._process = self._process, None
        if process is not None:
            self.exit_status = await stopped(process)
