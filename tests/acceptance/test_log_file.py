"""A log in a file of its own: whoever rotates it gives it another name and sends SIGHUP, and no line is lost."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from .conftest import Start
from .rig import Json, Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

FILE = 'file = "daemon.log"'


def told(file: Path, event: str) -> list[Json]:
    """The log's events of this name, of a file that may have been compressed."""
    if not file.is_file():
        return []
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = [cast(Json, json.loads(line)) for line in text.splitlines()]
    return [line for line in lines if line["event"] == event]


def files(rig: Rig) -> list[Path]:
    return sorted(rig.directory.glob("daemon.log*"))


def hang_up(rig: Rig) -> None:
    assert rig.process is not None
    rig.process.send_signal(signal.SIGHUP)


async def test_a_file_that_was_moved_away_is_begun_anew_at_sighup(start: Start) -> None:
    rig = await start(log=FILE)
    file, moved = rig.directory / "daemon.log", rig.directory / "daemon.log.1"
    assert told(file, "daemon_ready")
    [begun] = [cast(Json, json.loads(line)) for line in rig.log_text().splitlines()]
    assert (begun["event"], begun["file"]) == ("log_file_begun", str(file)), (
        "standard output has nothing else"
    )
    [chat] = await rig.registered()
    file.rename(moved)
    await rig.pinged(chat)
    assert told(moved, "ping_ok"), "until the signal it is the file that was open"
    hang_up(rig)
    await eventually("the reload", lambda: told(file, "config_reloaded"))
    before = moved.read_bytes()
    await rig.pinged(chat)
    assert told(file, "ping_ok")
    assert moved.read_bytes() == before
    assert file.stat().st_mode & 0o777 == 0o640


async def test_it_is_opened_anew_too_where_the_configuration_is_refused_or_cannot_be(start: Start) -> None:
    rig = await start(log=FILE)
    file, moved, again = (rig.directory / f"daemon.log{suffix}" for suffix in ("", ".1", ".2"))
    sound = rig.config.read_text()
    rig.config.write_text("nonsense")
    file.rename(moved)
    hang_up(rig)
    await eventually("the refusal", lambda: told(file, "config_refused"))
    assert not told(moved, "config_refused")
    file.rename(again)
    file.mkdir()
    hang_up(rig)
    await eventually("the complaint", lambda: told(again, "log_file_lost"))
    [complaint] = told(again, "log_file_lost")
    assert (complaint["file"], complaint["cause"]) == (str(file), "Is a directory")
    file.rmdir()
    rig.config.write_text(sound)
    hang_up(rig)
    await eventually("the reload", lambda: told(file, "config_reloaded"))


@pytest.mark.skipif(shutil.which("logrotate", path="/usr/sbin:/usr/bin") is None, reason="no logrotate here")
async def test_logrotate_as_documented_loses_no_line(start: Start) -> None:
    rig = await start(log=FILE)
    assert rig.process is not None
    file = rig.directory / "daemon.log"
    shipped = (Path(__file__).parents[2] / "etc" / "asyncchatd.logrotate").read_text()
    config = rig.directory / "logrotate.conf"
    for ours, here in {
        "/var/log/asyncchatd/asyncchatd.log": str(file),
        "systemctl is-active --quiet asyncchatd": "true",
        "systemctl reload asyncchatd": f"kill -HUP {rig.process.pid}",
    }.items():
        assert ours in shipped
        shipped = shipped.replace(ours, here)
    config.write_text(shipped)
    config.chmod(0o644)
    for reloads in range(1, 5):
        for chat in await rig.registered(5):
            await rig.ask_ping(chat)
        await _rotate(config, rig.directory)
        await eventually("the reload", partial(_reloaded, rig, reloads))
    await rig.settled()
    names = [each.name for each in files(rig)]
    assert names == ["daemon.log", "daemon.log.1", "daemon.log.2.gz", "daemon.log.3.gz", "daemon.log.4.gz"]
    assert sum(len(told(each, "ping_ok")) for each in files(rig)) == 20


async def _rotate(config: Path, directory: Path) -> None:
    words = ("logrotate", "--force", "--state", str(directory / "state"), str(config))
    process = await asyncio.create_subprocess_exec(*words, env={"PATH": "/usr/sbin:/usr/bin:/bin"})
    assert await asyncio.wait_for(process.wait(), 20) == 0


def _reloaded(rig: Rig, times: int) -> bool:
    return sum(len(told(each, "config_reloaded")) for each in files(rig)) >= times
