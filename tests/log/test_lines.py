"""The lines of the log on their way out: from which level on, when, and what libraries say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os

from asyncchatd.log.events import Event
from asyncchatd.log.lines import configure, get_logger

from .rig import writing


def test_lines_below_the_level_are_not_written() -> None:
    output = writing("warning")
    get_logger().info(Event.PUSH_RECEIVED)
    get_logger().warning(Event.STORE_FULL)
    assert [line["event"] for line in output.lines()] == ["store_full"]


def test_a_logger_made_before_is_redirected() -> None:
    logger = get_logger()
    first = writing()
    logger.info(Event.DAEMON_READY)
    second = writing()
    logger.info(Event.DAEMON_STOPPED)
    assert (first.line()["event"], second.line()["event"]) == ("daemon_ready", "daemon_stopped")


def test_every_line_is_written_out_at_once() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as written, os.fdopen(writer, "wb") as output:
        configure("info", "auto", output)
        get_logger().info(Event.DAEMON_READY)
        assert json.loads(written.read(10_000))["event"] == "daemon_ready"


def test_a_reader_that_is_gone_does_not_stop_the_daemon() -> None:
    reader, writer = os.pipe()
    output = os.fdopen(writer, "wb", buffering=0)
    configure("info", "json", output)
    os.close(reader)
    get_logger().info(Event.DAEMON_READY)
    output.close()
    get_logger().info(Event.DAEMON_STOPPED)


def test_libraries_are_heard_from_warnings_upwards() -> None:
    output = writing("debug")
    logging.getLogger("aiohttp.server").info("not this")
    logging.getLogger("aiohttp.server").error("Error handling request %s", 7)
    line = output.line()
    assert (line["event"], line["level"], line["logger"]) == ("library_message", "error", "aiohttp.server")
    assert line["message"] == "Error handling request 7"


def test_configuring_twice_does_not_write_twice() -> None:
    writing()
    output = writing()
    logging.getLogger("asyncio").warning("slow")
    assert len(output.lines()) == 1


class _Counted(io.BytesIO):
    flushed = 0

    def flush(self) -> None:
        self.flushed += 1


async def test_the_lines_of_one_turn_of_the_event_loop_share_a_write() -> None:
    output = _Counted()
    configure("info", "json", output)
    for _ in range(3):
        get_logger().info(Event.DAEMON_READY)
    assert output.flushed == 0
    await asyncio.sleep(0)
    assert output.flushed == 1
    get_logger().info(Event.DAEMON_READY)
    await asyncio.sleep(0)
    assert output.flushed == 2


async def test_what_is_bad_is_written_at_once_with_all_that_came_before() -> None:
    output = _Counted()
    configure("info", "json", output)
    get_logger().info(Event.DAEMON_READY)
    get_logger().error(Event.STORE_FAILED)
    assert output.flushed == 1


def test_without_an_event_loop_every_line_is_written_at_once() -> None:
    output = _Counted()
    configure("info", "json", output)
    get_logger().info(Event.DAEMON_READY)
    assert output.flushed == 1
