"""What came from outside arrives as something to read: on a terminal, in JSON, in the console log."""

from __future__ import annotations

import ast
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

import asyncchatd
from asyncchatd import log
from asyncchatd.cli import checklist, tables
from asyncchatd.cli import commands as cli
from asyncchatd.control import shapes
from asyncchatd.log import lines as log_lines
from asyncchatd.log.lines import Format
from asyncchatd.model.findings import Finding, Level
from asyncchatd.terminal.bars import progress
from asyncchatd.terminal.screens import Screen, show
from asyncchatd.visible import visible, visible_json

EVIL = (
    "\x1b[31m\x1b]0;title\x07\x1b]52;c;cm0=\x07\r\b\x7f\x9b31m"  # controls: colours, title, clipboard, C1
    "\u202e\u2066\u2069\u200e\u200f\u061c"  # the order of the text around it
    "\u2028\u2029\n"  # a line of its own
    "\u200b\u200d\ufeff\u00ad\u3164\ufe0f\U000e0041\u00a0"  # what nobody sees
    "[red]x[/red][link=http://evil/]:smile:"  # rich's markup, and its names of emoji
)
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

NOW = shapes.write_time(datetime.now(UTC))
SERVER = shapes.CountedServer(
    name=EVIL,
    state=EVIL,
    since=NOW,
    app_dbid=EVIL,
    process_os_pid=EVIL,
    checked_at=NOW,
    detail=EVIL,
    sessions=1,
)
RESTORATION = shapes.Restoration(
    id=1, server=EVIL, alias=EVIL, cause=EVIL, started_at=NOW, finished_at=None, took_seconds=None,
    sessions=2, restored=1, ended=0, refused=0, moved=0, waiting=1,
)  # fmt: skip
SESSION = shapes.Session(
    chat_id=EVIL, service=EVIL, user_id=EVIL, has_secure_key=True, alias=EVIL, device_id=EVIL, next_position=1,
    state=EVIL, reason=EVIL, due_at=NOW, attempts=0, restoration=None, registered_at=NOW, active_at=NOW,
    answered_at=NOW, ended_at=NOW, end_cause=EVIL, last_trouble=EVIL,
)  # fmt: skip
REGISTERED = shapes.Registered(
    taken=1, refused=1, kept=1,
    kept_lines=[shapes.KeptLine(line=1, chat_id=EVIL, state=EVIL, note=EVIL)],
    errors=[shapes.LineError(line=2, error=shapes.Problem(code=EVIL, message=EVIL, field=EVIL))],
)  # fmt: skip
STATUS = shapes.Status(
    ready=True, started_at=NOW, store_trouble=EVIL, uptime_seconds=1, sessions={}, due={EVIL: 1},
    pings=shapes.Pings(
        in_flight=0, in_flight_limit=1, max_rate=1, gms_available=True,
        nodes=[shapes.Node(node=EVIL, resting=True, cause=EVIL)],
    ),
    servers=[SERVER], restorations=[RESTORATION],
)  # fmt: skip


@pytest.mark.slow
@given(st.text())
def test_what_is_shown_is_seen_and_showing_it_again_changes_nothing(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    "text", ["00048aAPEQJ8000U", "Zoë Žluťoučký 你好 ✓ … 😀", "C:\\dir", "[red]x[/red]", ""]
)
def test_what_is_seen_as_itself_stays(text: str) -> None:
    assert visible(text) == text


def test_a_character_nobody_sees_becomes_its_escape() -> None:
    assert visible("a\x1b\n\u202e\U000e0041\ud800") == "a\\x1b\\n\\u202e\\U000e0041\\ud800"
    assert visible("a\nb\t", keep="\n") == "a\nb\\t"


@pytest.mark.slow
@given(st.recursive(st.text() | st.integers() | st.none(), st.lists))
def test_json_stays_what_it_is_and_shows_no_control(value: object) -> None:
    text = visible_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "shown",
    [
        tables.servers(shapes.Servers(servers=[SERVER], sessions_elsewhere={EVIL: 1})),
        tables.restorations(shapes.Restorations(restorations=[RESTORATION])),
        tables.sessions(shapes.SessionPage(sessions=[SESSION], next=None)),
        tables.session(SESSION),
        tables.registered(REGISTERED),
        tables.status(STATUS),
        checklist.findings([Finding(Level.ERROR, EVIL, EVIL, EVIL)]),
        Text(EVIL),
        EVIL,
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_table_lets_anything_through(shown: object, is_terminal: bool) -> None:
    screen = Screen()
    screen.file = io.StringIO()
    screen.width = 400
    screen._force_terminal = is_terminal
    screen.no_color = True
    show(screen, shown)  # type: ignore[arg-type]
    printed = re.sub(r"\x1b\[[0-9;]*m", "", screen.file.getvalue())  # its own colours
    assert not OBEYED.search(printed)
    assert "\\x1b[31m" in printed
    assert "[red]x[/red][link=http://evil/]:smile:" in printed.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("description", [EVIL, "[/nothing]", "{task}"])
def test_a_bar_says_what_it_was_told(description: str) -> None:
    screen = Screen()
    screen.file = io.StringIO()
    screen._force_terminal = True
    with progress(screen, "sessions") as bar:
        bar.add_task(description, total=1)
    assert "\x1b]" not in screen.file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--full"],
        ["--json"],
        ["--summary"],
        ["--summary", "--json"],
        ["--chat", EVIL],
        ["--server", EVIL],
    ],
)
def test_no_story_lets_anything_through(tmp_path: Path, options: list[str]) -> None:
    file = tmp_path / "a.log"
    with file.open("wb") as lines:
        for event in log.Event:
            line = {"time": "2026-11-22T14:02:11Z", "level": "error", "event": event.value}
            line |= dict.fromkeys(event.fields, EVIL)
            lines.write(json.dumps(line).encode() + b"\n")
            lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        lines.write(EVIL.encode() + b"\n")
    ended = CliRunner().invoke(cli.main, ["logs", str(file), *options])
    assert "a fault to report" not in ended.output
    assert not OBEYED.search(ended.output)


def test_a_complaint_lets_nothing_through() -> None:
    for arguments in (["ping"], ["restore"], ["completion"], ["check", "--config"], ["logs", "--since"]):
        ended = CliRunner().invoke(cli.main, [*arguments, EVIL])
        assert ended.exit_code in {1, 2}
        assert not OBEYED.search(ended.output)


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_of_the_log_lets_anything_through(form: Format) -> None:
    output = io.BytesIO()
    log.configure(format=form, output=output)
    try:
        for event in log.Event:
            log.get_logger().error(
                event, **dict.fromkeys(event.fields, EVIL), **{EVIL: EVIL}, deep=[{EVIL: EVIL}]
            )
        log_lines._output.write()
    finally:
        log.configure()
    lines = output.getvalue().decode()
    assert not OBEYED.search(lines)
    assert len(lines.splitlines()) == len(log.Event)
    if form == "json":
        assert json.loads(lines.splitlines()[0])[EVIL] == EVIL


@pytest.mark.slow
def test_nothing_but_the_terminals_module_writes_to_one() -> None:
    """Who prints on another way forgets what may be in a name."""
    own = {"lines.py", "screens.py"}
    for path in Path(asyncchatd.__file__).parent.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            words = ast.unparse(call.func)
            if words == "print":
                assert path.name in {"__main__.py", "manual.py", "lnav.py"}, path  # written documents
            elif path.name not in own:
                assert words not in {"click.echo", "click.secho", "Console", "sys.stdout.write"}, path
