"""`asyncchatd logs` as a command: where it reads, what it prints, its exit status, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import started

from asyncchatd.cli import commands as cli
from asyncchatd.story.narrator import dated

COMMAND = (sys.executable, "-m", "asyncchatd", "logs")

LOG = b"""\
{"time":"2026-11-22T14:00:00Z","level":"info","event":"daemon_starting","version":"1.0","pid":7}
asyncchatd.service: some words of another
{"time":"2026-11-22T14:02:11Z","level":"info","event":"push_received","chat_id":"A1","type":"Message"}
{"time":"2026-11-22T14:02:11.03Z","level":"info","event":"ping_ok","chat_id":"A1","alias":"117","reason":"acknowledge"}
{"time":"2026-11-22T14:02:12Z","level":"info","event":"push_received","chat_id":"B\\u00e92","type":"Message"}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "asyncchatd.log"
    path.write_bytes(LOG)
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["logs", *map(str, arguments)])


def test_a_chat_is_told_from_a_file(log: Path) -> None:
    result = invoke("--chat", "A1", log)
    assert result.exit_code == 0
    told, verdict = result.stdout.split("\n\n")
    assert told.endswith("GMS pushed a message (acknowledged 0.03 s later)")
    assert verdict.startswith("Still alive at the end of the log")


def test_a_chat_whose_id_json_writes_otherwise_is_found(log: Path) -> None:
    assert "the chat still waits" in invoke("--chat", "Bé2", log).stdout


def test_a_chat_the_log_does_not_know_is_exit_status_1_and_says_what_was_read(log: Path) -> None:
    result = invoke("--chat", "C3", log)
    assert result.exit_code == 1
    assert "does not speak of the chat C3" in result.stdout
    assert "1 of 5 lines were not asyncchatd's" in result.stdout


def test_what_is_no_log_of_ours_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "syslog"
    path.write_text("Nov 22 14:00:00 host cron[1]: hello\n")
    result = invoke("--chat", "A1", path)
    assert result.exit_code == 1
    assert "is it the right file?" in result.stdout


def test_json_is_a_line_for_each_sentence_and_the_verdict(log: Path) -> None:
    lines = [json.loads(line) for line in invoke("--chat", "A1", "--json", log).stdout.splitlines()]
    assert [line.get("event") for line in lines] == ["push_received", None]
    assert lines[0]["time"] == "2026-11-22T14:02:11Z"
    assert lines[1]["verdict"][0].startswith("Still alive")
    summary = json.loads(invoke("--summary", "--json", log).stdout)
    assert (summary["lines"], summary["foreign_lines"], summary["acknowledged"]) == (5, 1, 1)


def test_since_and_until_bound_what_is_told(log: Path) -> None:
    text = invoke("--since", "2026-11-22T14:02:00Z", "--until", "2026-11-22T14:02:11.5Z", log).stdout
    assert "1 push; 1 ping answered" in text
    assert "was started" not in text
    assert '"lines": 5' in invoke("--summary", "--json", "--since", "2026-11-22T15:00:00Z", log).stdout


def test_a_summary_of_no_line_is_all_zero(log: Path) -> None:
    """What is sought may lie behind the last line: nothing happened there, on every Python."""
    result = invoke("--summary", "--json", "--since", "2026-11-22T15:00:00Z", log)
    summary = json.loads(result.stdout)
    assert "before --since" in result.stderr
    assert (summary["since"], summary["until"]) == (None, None)
    assert (summary["gms_outage_seconds"], summary["daemon_absent_seconds"]) == (0.0, 0.0)


ASKED = [[], ["--summary"], ["--chat", "A1"], ["--server", "chat-1"], ["--restoration", "1"], ["--json"]]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "There was nothing to read."),
        (
            b"Nov 22 14:00:00 host cron[1]: hello\n",
            "No line was one of asyncchatd's (the only one was another's)",
        ),
        (b"one\ntwo\n", "No line was one of asyncchatd's (2 were others'): is it the right file?"),
    ],
)
def test_a_file_without_a_line_of_ours_is_exit_status_1(
    asked: list[str], content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    result = invoke(*asked, path)
    assert result.exit_code == 1
    assert words in result.stdout


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("span", "words"),
    [
        (["--since", "2026-11-22T15:00:00Z"], "The log ends at {last}, before --since"),
        (["--until", "2026-11-22T13:00:00Z"], "The log begins at {first}, after --until"),
    ],
)
def test_a_time_that_the_log_does_not_know_is_exit_status_1(
    asked: list[str], span: list[str], words: str, log: Path
) -> None:
    result = invoke(*asked, *span, log)
    assert result.exit_code == 1
    said = words.format(
        first=dated(datetime(2026, 11, 22, 14, tzinfo=UTC)),
        last=dated(datetime(2026, 11, 22, 14, 2, 12, tzinfo=UTC)),
    )
    assert said in result.output


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("until", ["2026-11-22T14:00:00Z", "2026-11-22T13:00:00Z"])
def test_a_time_that_can_hold_nothing_is_exit_status_1_and_one_line(
    asked: list[str], until: str, log: Path
) -> None:
    result = invoke(*asked, "--since", "2026-11-22T14:00:00Z", "--until", until, log)
    assert (result.exit_code, result.stdout) == (1, "")
    since = dated(datetime(2026, 11, 22, 14, tzinfo=UTC))
    assert result.stderr == (
        f"Error: nothing lies between --since {since} and --until {dated(datetime.fromisoformat(until))}\n"
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "Nothing was logged in this time."),
        (["--summary"], "Nothing was logged in this time."),
        (["--chat", "A1"], "Nothing was logged of it in this time."),
    ],
)
def test_a_quiet_time_within_the_log_is_said_to_be_one(asked: list[str], words: str, log: Path) -> None:
    result = invoke(*asked, "--since", "2026-11-22T14:02:11.5Z", "--until", "2026-11-22T14:02:11.9Z", log)
    assert words in result.stdout
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--since", "soon"], "--since"),
        (["--chat", "A1", "--summary"], "only one of"),
        (["--summary", "--follow"], "looks back"),
    ],
)
def test_options_that_make_no_sense_are_wrong(log: Path, options: list[str], words: str) -> None:
    result = invoke(*options, log)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_file_that_is_not_there_is_one_line() -> None:
    result = invoke("none.log")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "none.log cannot be read" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [[], ["-"]])
def test_what_is_piped_in_is_read(name: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, "--chat", "A1", *name], input=LOG, capture_output=True, timeout=30, check=True
    )
    assert b"acknowledged 0.03 s later" in done.stdout


@pytest.mark.slow
def test_following_a_file_tells_what_is_written_until_ctrl_c(log: Path) -> None:
    with started(*COMMAND, "--follow", log) as following:
        assert following.stdout is not None
        while b"GMS pushed a message" not in (said := following.stdout.readline()):
            assert said
        with log.open("ab") as more:
            more.write(
                b'{"time":"2026-11-22T14:03:00Z","level":"error","event":"gms_unavailable","cause":"tls"}\n'
            )
        while b"No GMS node answers any more" not in said:
            said = following.stdout.readline()
            assert said
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 0


def test_a_server_that_is_not_configured_is_told_from_one_that_had_a_quiet_day(
    log: Path, tmp_path: Path
) -> None:
    config = tmp_path / "asyncchatd.toml"
    config.write_text('[[chat_server]]\nname = "chat-1"\n')
    mistyped = invoke("--server", "chat1", "--config", config, log)
    assert mistyped.exit_code == 1
    assert "No Chat Server of this name is configured, but chat-1." in mistyped.stderr
    quiet = invoke("--server", "chat-1", "--config", config, log)
    assert (quiet.exit_code, quiet.stderr) == (1, "")
