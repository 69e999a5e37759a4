"""What the commands show to people: tables on a terminal, the same columns without colour elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asyncchatd.control import shapes
from asyncchatd.model import NodeState, SessionState, durations, living, shared_names
from asyncchatd.visible import visible

COLOURS = {
    "up": "green",
    "present": "green",
    "live": "green",
    "ok": "green",
    "note": "dim",
    "unknown": "dim",
    "ended": "dim",
    "suspect": "yellow",
    "silent": "bold red",
    "gone": "bold red",
    "incomplete": "yellow",
    "warning": "yellow",
    "down": "bold red",
    "error": "bold red",
}


def time_in_words(at: shapes.Time | None, now: datetime) -> str:
    """A time for people: `12 s ago`, `in 5 min`, beyond two days the local date; `-` for never."""
    if at is None:
        return "-"
    when = shapes.read_time(at)
    seconds = (now - when).total_seconds()
    if abs(seconds) >= 2 * 24 * 3600:
        return f"{when.astimezone():%Y-%m-%d %H:%M}"
    return f"{durations.in_words(seconds)} ago" if seconds >= 0 else f"in {durations.in_words(-seconds)}"


PUSHES_MISSING = "missing: GMS is asked about all chats whose pages are open"
WAIT_FOR_ONE = "asyncchatd check --connect --wait-for-push waits for one"
SENDERS_SHOWN = 4
REFUSALS_SHOWN = 3
LATELY_SECONDS = 3_600.0
"""How long ago a refusal may be to be shown; older ones are in the log."""


def status(view: shapes.Status) -> RenderableType:
    """How the daemon is, in one look."""
    pings = view.pings
    parts: list[RenderableType] = [
        _facts(
            (
                "daemon",
                f"{'ready' if view.ready else 'not ready'}, up for {durations.in_words(view.uptime_seconds)}",
            ),
            *([("store", Text(view.store_trouble, style=COLOURS["down"]))] if view.store_trouble else []),
            *([("store", Text(view.store_note, style=COLOURS["suspect"]))] if view.store_note else []),
            *_configuration(view),
            *([("metrics", f"scraped at {', '.join(view.metrics)}")] if view.metrics else []),
            *_replaced(view),
            *_sharing(view),
            *_gateway(view),
            *_pushes(view),
            ("sessions", _counted({state: view.sessions.get(state, 0) for state in SessionState})),
            ("due now", _counted({reason: count for reason, count in view.due.items() if count}) or "none"),
            ("pings", f"{pings.in_flight} in flight of at most {pings.in_flight_limit}"),
            ("rate", f"at most {pings.max_rate:g} requests per second"),
        ),
        Text(),
        _nodes(view),
    ]
    if view.servers:
        parts += [Text(), _servers(view.servers)]
    if view.consumers:
        parts += [Text(), consumers(view.consumers)]
    if view.restorations:
        parts += [Text(), restorations(shapes.Restorations(restorations=view.restorations))]
    return Group(*parts)


def _pushes(view: shapes.Status) -> list[tuple[str, RenderableType]]:
    """Whether GMS reaches the daemon, and what was refused lately."""
    rows: list[tuple[str, RenderableType]] = []
    if view.pushes_missing:
        rows.append(("pushes", Text(PUSHES_MISSING, style=COLOURS["down"])))
    if view.pushes is None:
        return rows
    now = datetime.now(UTC)
    its = view.pushes
    if its.last_at is None:
        rows.append(("pushes", Text(f"none since the start; {WAIT_FOR_ONE}", style=COLOURS["unknown"])))
    else:
        came_from = listed([each.client for each in its.senders], SENDERS_SHOWN)
        rows.append(
            ("pushes", f"{its.count:,}, the last {time_in_words(its.last_at, now)}, from {came_from}")
        )
    for each in its.refused[:REFUSALS_SHOWN]:
        if (now - shapes.read_time(each.last_at)).total_seconds() < LATELY_SECONDS:
            times = "" if each.count == 1 else f"{each.count:,} times, the last "
            words = f"{each.client}, {times}{time_in_words(each.last_at, now)}: {each.message}"
            rows.append(("refused", Text(visible(words), style=COLOURS["suspect"])))
    return rows


def listed(names: Sequence[str], most: int) -> str:
    """Names in a sentence: the first `most` of them, and how many more there are."""
    shown, more = names[:most], len(names) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def _configuration(view: shapes.Status) -> list[tuple[str, Text]]:
    """Nothing, unless the file as it was last read is not in force."""
    refused = view.configuration.refused if view.configuration else None
    if refused is None:
        return []
    when = time_in_words(refused.at, datetime.now(UTC))
    said = f"the changed file was refused {when}: {refused.cause}; {refused.advice}"
    return [("configuration", Text(said, style=COLOURS["down"]))]


def _replaced(view: shapes.Status) -> list[tuple[str, RenderableType]]:
    words = f"{view.store_replaced}; if that is right: asyncchatd store accept"
    return [("store", Text(visible(words), style=COLOURS["down"]))] if view.store_replaced else []


def _sharing(view: shapes.Status) -> list[tuple[str, Text]]:
    """Nothing where nobody shares the store, else how many do and who does not any more."""
    if not view.nodes:
        return []
    present = sum(each.state == NodeState.PRESENT for each in view.nodes)
    absent = [
        f"{each.name} is {each.state}"
        + (f" and holds {each.claims:,} session{'s' * (each.claims != 1)}" if each.claims else "")
        for each in view.nodes
        if each.state != NodeState.PRESENT
    ]
    share = f"{present} share{'s' * (present == 1)} the store"
    words = Text(visible("; ".join((share, *absent))), style=COLOURS["gone"] if absent else "")
    return [("nodes", words)]


def nodes(view: shapes.Status) -> RenderableType:
    """The processes that share the store, a line each."""
    if not view.nodes:
        return Text("nobody shares the store: it is of this process alone")
    now = datetime.now(UTC)
    table = _table("node", "number", "state", "version", "since", "seen", "claims", "")
    for each in view.nodes:
        table.add_row(
            visible(each.name),
            str(each.number),
            _coloured(each.state),
            each.version,
            time_in_words(each.started_at, now),
            time_in_words(each.seen_at, now),
            f"{each.claims:,}",
            "this one" if each.own else "",
        )
    differing = [
        Text(f"{each.key} is not the same for all: {_by_node(each.values)}", style="red")
        for each in view.differences
    ]
    nameless = [
        Text(
            f"{count} of them have the name {visible(name)}: give each its own, node=NAME in store.url",
            style="red",
        )
        for name, count in shared_names(living(view.nodes)).items()
    ]
    return Group(table, *nameless, *differing) if nameless or differing else table


def _by_node(values: Mapping[str, str]) -> str:
    return ", ".join(f"{visible(value)} at {visible(name)}" for name, value in values.items())


def _gateway(view: shapes.Status) -> list[tuple[str, str]]:
    """Where chat clients are served, how many chats hold it in its place, and how many pages look at them."""
    at = f"chat clients at {', '.join(view.gateway)}" if view.gateway else "none"
    chats = "1 live chat" if view.gateway_chats == 1 else f"{view.gateway_chats:,} live chats"
    began = f"{chats} began here" if view.gateway_chats else ""
    held = f"{view.gateway_polls:,} poll{'s' * (view.gateway_polls != 1)} held" if view.gateway_polls else ""
    streams = (
        f"{view.gateway_streams:,} stream{'s' * (view.gateway_streams != 1)} open"
        if view.gateway_streams
        else ""
    )
    parts = filter(None, (at, began, held, streams))
    return [("gateway", ", ".join(parts))] if view.gateway or began else []


def servers(view: shapes.Servers) -> RenderableType:
    """The Chat Servers."""
    table = _servers(view.servers) if view.servers else Text("no Chat Server is configured")
    if not view.sessions_elsewhere:
        return table
    elsewhere = ", ".join(f"{alias or '?'}: {count:,}" for alias, count in view.sessions_elsewhere.items())
    return Group(table, Text(f"sessions of Chat Servers that are not configured, by alias: {elsewhere}"))


def sessions(view: shapes.SessionPage) -> RenderableType:
    """Sessions, a line each."""
    now = datetime.now(UTC)
    table = _table("chat", "state", "alias", "reason", "due", "answered", "active", "trouble")
    for each in view.sessions:
        table.add_row(
            each.chat_id or f"(device {each.device_id})",
            _coloured(each.state),
            each.alias or "-",
            each.reason or "-",
            time_in_words(each.due_at, now),
            time_in_words(each.answered_at, now),
            time_in_words(each.active_at, now),
            each.last_trouble or "-",
        )
    more = (
        Text("there are more; see --limit", style="dim")
        if view.next
        else Text(f"{len(view.sessions):,} shown")
    )
    return Group(table, more)


def session(view: shapes.Session) -> RenderableType:
    """All of one session."""
    now = datetime.now(UTC)
    ended = f"{time_in_words(view.ended_at, now)}, {view.end_cause}" if view.ended_at else "-"
    due = f"{time_in_words(view.due_at, now)}, {view.reason}" if view.due_at else "-"
    return _facts(
        ("chat", view.chat_id or "-"),
        ("state", _coloured(view.state)),
        ("service", view.service or "-"),
        ("alias", view.alias or "-"),
        ("user id", view.user_id or "-"),
        ("secure key", "known" if view.has_secure_key else "missing"),
        ("device id", view.device_id or "-"),
        ("next position", "-" if view.next_position is None else str(view.next_position)),
        ("due", due),
        ("pings since the last answer", str(view.attempts)),
        ("last trouble", view.last_trouble or "-"),
        ("what GMS said", view.trouble_detail or "-"),
        ("refused since", time_in_words(view.refused_since, now)),
        ("restoration", "-" if view.restoration is None else str(view.restoration)),
        ("registered", time_in_words(view.registered_at, now)),
        ("active", time_in_words(view.active_at, now)),
        ("answered", time_in_words(view.answered_at, now)),
        ("ended", ended),
    )


def registered(view: shapes.Registered) -> RenderableType:
    """What became of registrations: how many were taken, and what there is to say of the others."""
    known = f", {view.kept:,} of them with an old key, which changed nothing" if view.kept else ""
    parts: list[RenderableType] = [Text(f"{view.taken:,} registered{known}")]
    if view.kept_lines:
        table = _table("line", "chat", "state", "")
        for kept in view.kept_lines:
            table.add_row(str(kept.line), kept.chat_id, _coloured(kept.state), kept.note)
        parts += [Text(), table]
    if view.errors:
        table = _table("line", "field", "not taken, because")
        for each in view.errors:
            table.add_row(str(each.line), each.error.field or "-", each.error.message)
        parts += [Text(), table]
    return Group(*parts)


def ended(count: int) -> RenderableType:
    """How many chats are looked after no more."""
    chats = "1 chat is" if count == 1 else f"{count:,} chats are"
    return Text(f"{chats} looked after no more; GMS was told nothing")


def consumers(consumers: Sequence[shapes.Consumer]) -> RenderableType:
    """Consumers, a line each."""
    if not consumers:
        return Text("no consumer is configured: what is written in chats is kept for a gateway alone")
    asked = any(each.acknowledges for each in consumers)
    further = ["asked", "acknowledged", "ran out"] if asked else []
    table = _table("consumer", "how", "behind", "oldest waits", "chats", "parked", *further, "state")
    for each in consumers:
        counts = [f"{count:,}" for count in (each.asked, each.acknowledged, each.ran_out)]
        table.add_row(
            each.name,
            each.how,
            f"{each.behind:,}",
            durations.in_words(each.lag_seconds) if each.behind else "-",
            f"{each.chats:,}",
            Text(f"{each.parked:,}", style=COLOURS["error"] if each.parked else ""),
            *((counts if each.acknowledges else ["-"] * 3) if asked else ()),
            _state_of(each),
        )
    return table


def _state_of(consumer: shapes.Consumer) -> Text:
    if consumer.paused:
        return Text("paused", style=COLOURS["warning"])
    if consumer.trouble is not None:
        return Text(visible(consumer.trouble), style=COLOURS["warning"])
    return _coloured("ok")


def steered(view: shapes.Steered, verb: str) -> RenderableType:
    """What was done to a consumer, and how it is now."""
    tell = _tried if verb in ("retry", "replay") else _paused
    return Group(Text(visible(tell(view, verb))), Text(), consumers([view.consumer]))


def _tried(view: shapes.Steered, verb: str) -> str:
    """What comes of `retry` and `replay`."""
    consumer, count = view.consumer, view.batches
    if verb == "replay" and not count:
        return f"nothing of {consumer.name} is put aside"
    parked = (
        f"; what is put aside is tried by asyncchatd consumers replay {consumer.name}"
        if consumer.parked
        else ""
    )
    batches = "1 batch" if count == 1 else f"{count:,} batches"
    if consumer.paused:
        them = f"{batches} will be tried again when it is" if count else "nothing is tried before it is"
        resume = f"asyncchatd consumers resume {consumer.name}"
        return f"{consumer.name} is paused: {them} resumed, {resume}{parked}"
    if not count:
        return f"nothing of {consumer.name} waits for another try{parked}"
    return f"{batches} {'is' if count == 1 else 'are'} tried again now{parked}"


def _paused(view: shapes.Steered, verb: str) -> str:
    """What comes of `pause` and `resume`."""
    name = view.consumer.name
    if verb == "pause":
        already = "" if view.changed else " already"
        return f"{name} is paused{already}: it is told nothing, and what happens is kept for it"
    if not view.changed:
        return f"{name} was not paused"
    behind = view.consumer.behind
    waiting = f", and first what it missed: {behind:,} event{'s' * (behind != 1)}" if behind else ""
    return f"{name} is told again what happens{waiting}"


def restorations(view: shapes.Restorations) -> RenderableType:
    """Restorations, a line each."""
    if not view.restorations:
        return Text("no restoration so far")
    now = datetime.now(UTC)
    table = _table(
        "restoration", "server", "cause", "began", "took", "done", "of", "ended", "refused", "moved", "left"
    )
    for each in view.restorations:
        table.add_row(
            f"#{each.id}",
            each.server or f"(alias {each.alias})",
            each.cause,
            time_in_words(each.started_at, now),
            "running" if each.took_seconds is None else durations.in_words(each.took_seconds),
            f"{each.restored:,}",
            f"{each.sessions:,}",
            f"{each.ended:,}",
            f"{each.refused:,}",
            f"{each.moved:,}",
            _left(each),
        )
    return table


def _servers(servers: Sequence[shapes.Server]) -> Table:
    now = datetime.now(UTC)
    counted = any(isinstance(each, shapes.CountedServer) for each in servers)
    table = _table(
        "server", "state", "since", "app_dbid", "pid", *(["sessions"] if counted else []), "detail"
    )
    for each in servers:
        count = [f"{each.sessions:,}"] if isinstance(each, shapes.CountedServer) else []
        table.add_row(
            each.name,
            _coloured(each.state),
            time_in_words(each.since, now),
            each.app_dbid or "?",
            each.process_os_pid or "?",
            *count,
            each.detail or "",
        )
    return table


def _nodes(view: shapes.Status) -> Table:
    table = _table("GMS node", "state")
    for node in view.pings.nodes:
        state = (
            Text(f"resting: {node.cause or '?'}", style="yellow")
            if node.resting
            else Text("in use", style="green")
        )
        table.add_row(node.node, state)
    return table


def _left(restoration: shapes.Restoration) -> Text:
    """What is still to be done, or was left undone."""
    if restoration.finished_at is not None:
        left = f"{restoration.refused:,} left without an answer" if restoration.refused else ""
        return Text(left, style="red")
    wait = "session waits" if restoration.waiting == restoration.sessions == 1 else "sessions wait"
    left = f"{restoration.waiting:,} of {restoration.sessions:,} {wait}"
    if restoration.left_seconds is not None:
        left += f", about {durations.in_words(restoration.left_seconds)} left"
    return Text(left, style=COLOURS["warning"] if restoration.waiting else "")


_NUMBERS = {
    "number",
    "claims",
    "sessions",
    "done",
    "of",
    "ended",
    "refused",
    "moved",
    "behind",
    "chats",
    "parked",
}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return table


def _facts(*facts: tuple[str, RenderableType]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts:
        grid.add_row(Text(name, style="dim"), fact)
    return grid


def _coloured(word: str) -> Text:
    return Text(visible(word), style=COLOURS.get(word, ""))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {word}" for word, count in counts.items())
