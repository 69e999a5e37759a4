"""What sentences about events are put together from, where that takes more than a line."""

from __future__ import annotations

from asyncchatd.model import durations
from asyncchatd.story.words import Said

ASKED = "asked to"
"""The cause of a stop that somebody asked for."""


def of_events(said: Said) -> str:
    """What a consumer was to take: `event 7`, `events 7 to 9`; by their number alone where they are no events of the
    transcript."""
    return said.places() or said.count("count", "event")


def of_call(said: Said) -> str:
    done = {
        "done": "GMS took it",
        "refused": "GMS refused it",
        "ended": "the chat is over",
        "not_sent": "it was not taken",
        "unknown": "nobody knows what became of it",
    }
    became = done.get(said.text("outcome"), said.text("outcome"))
    waited = f" after {said.length('waited_ms')} of waiting" if said.number("waited_ms") >= 100 else ""
    return f"The client's {said.text('operation')}: {became}{waited} ({said.length('took_ms')})"


def took(said: Said) -> str:
    """How a delivery went: `0.09 s after it was fetched, at try 2`."""
    tries = said.number("tries") if said.has("tries") else 1
    them = "it was" if said.number("count") == 1 else "the first was"
    return f"{said.length('lag_ms')} after {them} fetched{f', at try {tries:.0f}' if tries > 1 else ''}"


def listener(said: Said) -> str:
    """A listener as one speaks of it; the others are named as what they are."""
    name = said.text("listener")
    return "address of the metrics" if name == "metrics" else name


QUIT_CODES = {
    0: "logged out",
    3: "silent for too long, by the protocol",
    4: "removed by another participant",
    5: "removed by the server",
    6: "wrong secure key",
    7: "chat inactive for too long",
    8: "marked as removed during a restoration",
}

_THINGS = {
    "message": "a message",
    "fileuploaded": "a file",
    "customnotice": "a custom notice",
    "notice": "a notice",
    "idlealert": "a warning that the chat is idle",
}
"""What is pushed, by the notification's type."""
_FACTS = {
    "participantjoined": "somebody joined",
    "participantleft": "somebody left",
    "typingstarted": "somebody types",
    "typingstopped": "somebody stopped typing",
    "filedeleted": "a file was deleted",
    "pushurl": "something happened (push-url)",
    "idleclose": "the idle chat is closed",
}
"""What a push says that happened, by the notification's type."""
_PEOPLE = {"client": "the customer", "agent": "an agent", "supervisor": "a supervisor", "bot": "a bot"}


def pushed(said: Said) -> str:
    fact, thing = _content(said)
    return f"GMS pushed {f'that {fact}' if fact else thing}{_circumstances(said)}"


def told_by_push(said: Said) -> str:
    """What a push told, as a sentence of its own: `the customer left (logged out)`, `GMS pushed a message`."""
    fact, _ = _content(said)
    return f"{fact}{_circumstances(said)}" if fact else pushed(said)


def _content(said: Said) -> tuple[str, str]:
    """What a push says that happened, or else the thing that was pushed; one of both is empty."""
    kind = said.text("type", "").lower().replace("-", "").replace("_", "")
    who = _PEOPLE.get(said.text("sender", "").lower())
    fact = _FACTS.get(kind, "")
    what = fact or _THINGS.get(
        kind, f"a notification of type {said.text('type')}" if kind else "a notification"
    )
    if who:
        what = what.replace("somebody", who) if "somebody" in what else f"{what} from {who}"
    code = said.fields.get("quit_code")
    if isinstance(code, int):
        what += f" ({QUIT_CODES.get(code, f'quit reason {code}')})"
    if said.text("reason") == "restore":
        return "the Chat Server is about to stop", ""
    return (what, "") if fact else ("", what)


def _circumstances(said: Said) -> str:
    known = said.text("known")
    note = {
        "unknown": ", for a chat nobody had registered yet",
        "ended": ", though the chat was over",
    }.get(known, "")
    return f"{' again' if known == 'resent' else ''}{note}"


def ping_ok(said: Said) -> str:
    what = {
        "acknowledge": f"The push was acknowledged, {said.length('waited_ms')} after it was due",
        "restore": f"Restored on {said.server()}",
        "request": "The ping that was asked for was answered",
        "keepalive": "A keepalive was answered",
    }.get(said.text("reason"), "A ping was answered")
    if said.text("reason") != "restore" and said.has("previous_alias"):
        what += f"; it moved from {said.server('previous_alias')} to {said.server()}"
    tries = said.number("attempt")
    fetched = f"; it fetched {places}" if (places := said.places()) else ""
    return f"{what}{f', at try {tries:g}' if tries > 1 else ''} (GMS took {said.length('took_ms')}){fetched}"


def moved(said: Said) -> str:
    if said.has("previous_alias") and said.text("previous_alias") != said.text("alias"):
        return f"It moved from {said.server('previous_alias')} to {said.server()}"
    return f"It has new keys, on {said.server()}{said.end(', told by a ', 'cause')}"


def ended(said: Said) -> str:
    ping = _PINGS.get(said.text("reason"), "")
    return f"GMS said that the chat is over{ping}{said.end(': ', 'detail')}"


_PINGS = {
    "acknowledge": ", in the answer to the ping that acknowledged a push",
    "restore": ", in the answer to the ping that was to restore it",
    "request": ", in the answer to the ping somebody asked for",
    "keepalive": ", in the answer to a keepalive",
}


def started(said: Said) -> str:
    return (
        f"Restoration #{said.text('restoration')} of {said.count('sessions', 'chat')} of {said.server()}"
        f" began: {said.cause()}"
    )


def finished(said: Said) -> str:
    return (
        f"Restoration #{said.text('restoration')} of {said.server()} was done after {said.length('took_ms')}:"
        f" {_counts(said, ('refused', 'refused by GMS'))}"
    )


def incomplete(said: Said) -> str:
    return (
        f"Restoration #{said.text('restoration')} of {said.server()} was over after {said.length('took_ms')}"
        f" and left {said.count('refused', 'chat')} without an answer, because GMS refused to serve them;"
        f" {_counts(said)}"
    )


def _counts(said: Said, *more: tuple[str, str]) -> str:
    kinds = (("ended", "over"), *more, ("moved", "taken over by a later restoration"))
    rest = "".join(f", {said.number(name):,} {words}" for name, words in kinds if said.number(name))
    return f"{said.count('restored', 'chat')} restored{rest}"


def progress(said: Said) -> str:
    left = f", about {durations.in_words(said.number('left_s'))} to go" if said.has("left_s") else ""
    return (
        f"Restoration #{said.text('restoration')} of {said.server()}: {said.count('restored', 'chat')}"
        f" restored, {said.number('waiting'):,} waiting, {said.number('rate'):g}/s{left}"
    )


def identity(said: Said) -> str:
    return (
        f"The health page of {said.text('server', 'a Chat Server')} speaks of alias {said.text('alias')}"
        f"{said.end(' instead of ', 'previous_alias')}{said.end(': ', 'cause')}"
    )


def retry(said: Said) -> str:
    again = f"; again in {said.length('next_ms')}" if said.has("next_ms") else ""
    ping = {"acknowledge": "acknowledge", "restore": "restore"}.get(said.text("reason"), "ping")
    return (
        f"Try {said.text('attempt')} to {ping} it brought no result: {said.cause()}{own_words(said)}{again}"
    )


def own_words(said: Said) -> str:
    """What GMS said of its own error, where it said anything; and all that is known, where the cause is of a kind."""
    of_a_kind = said.text("cause") in {
        "client_error",
        "server_error",
        "redirect",
        "odd_status",
        "connect",
        "tls",
    }
    return said.end(" (", "detail" if of_a_kind else "said", ")")


def starting(said: Said) -> str:
    return f"asyncchatd {said.text('version', '')} was started (process {said.text('pid')})".replace(
        "  ", " "
    )


def failed(said: Said) -> str:
    if said.text("part") == "start":
        return f"asyncchatd could not start: {said.text('cause')}"
    return f"asyncchatd failed in its part {said.text('part')} and stops: {said.text('cause')}"
