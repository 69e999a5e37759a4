"""Each event of the catalogue in words.

A sentence about a chat does not name the chat: who tells one chat's story need not repeat it, and who tells
all puts `chat ...:` before it. An event without a sentence of its own is told by what the catalogue says of it,
and one of a later version as it is, both with their fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from asyncchatd.log import Event, Subject, Trait
from asyncchatd.story import phrases
from asyncchatd.story.read import Line
from asyncchatd.story.words import Said, as_words


def _of(kind: Subject | Trait) -> frozenset[str]:
    """The names of the events that the catalogue says this of."""
    return frozenset(event.value for event in Event if event.subject is kind or kind in event.traits)


CHAT_EVENTS, SERVER_EVENTS, PLANT_EVENTS = _of(Subject.CHAT), _of(Subject.SERVER), _of(Subject.PLANT)
FRUITLESS, SUMMED = _of(Trait.FRUITLESS), _of(Trait.SUMMARY)

SENTENCES: Mapping[str, Callable[[Said], str]] = {
    Event.DAEMON_STARTING: phrases.starting,
    Event.DAEMON_READY: lambda said: (
        f"asyncchatd took pushes after {said.length('took_ms')}, with {said.count('sessions', 'chat')}"
        f" and {said.count('servers', 'Chat Server')} watched"
    ),
    Event.DAEMON_STOPPING: lambda said: (
        "asyncchatd was asked to stop"
        if said.text("cause") == phrases.ASKED
        else f"asyncchatd stops because of its part {said.text('cause')}"
    ),
    Event.DAEMON_STOPPED: lambda said: (
        "asyncchatd stopped"
        + (f"; {said.count('in_flight', 'ping')} cut off" if said.number("in_flight") else "")
    ),
    Event.DAEMON_FAILED: phrases.failed,
    Event.CONFIG_WARNING: lambda said: (
        f"Doubtful in the configuration: {said.text('key', 'the file')}: {said.text('message')}"
        f"{said.end('; ', 'advice')}"
    ),
    Event.CONFIG_RELOADED: lambda said: (
        f"A changed configuration was taken over: {said.text('changed')}"
        if said.has("changed")
        else "The configuration was read anew, and nothing in it had changed"
    ),
    Event.LOG_FILE_BEGUN: lambda said: (
        f"From here on the log is in a file: asyncchatd logs '{said.text('file')}'*"
    ),
    Event.LOG_FILE_LOST: lambda said: (
        f"The log's file {said.text('file')} could not be opened anew{said.end(': ', 'cause')};"
        " lines went on to the old one"
    ),
    Event.CONFIG_REFUSED: lambda said: (
        f"The changed configuration was not taken over, asyncchatd runs on as before: {said.cause()}"
        f"{said.end('; ', 'advice')}"
    ),
    Event.CHAT_OPENED: lambda said: f"A client began the chat at {said.server()} ({said.length('took_ms')})",
    Event.CALL_DONE: phrases.of_call,
    Event.CALL_UNKNOWN: lambda said: (
        f"Nobody knows what became of the client's {said.text('operation')}; it was told to try again"
    ),
    Event.PUSHES_MISSING: lambda said: (
        f"Pushes are missing: {said.text('misses')} of {said.text('looks')} looks showed what none had announced;"
        " GMS is asked about all chats whose pages are open"
    ),
    Event.PUSHES_COMING: lambda said: "Pushes come again",
    Event.EVENTS_DELIVERED: lambda said: (
        f"Consumer {said.text('consumer')} took {phrases.of_events(said)}, {phrases.took(said)}"
    ),
    Event.EVENTS_SHOWN: lambda said: (
        f"The customer's page was told {phrases.of_events(said)}, {phrases.took(said)}"
    ),
    Event.EVENTS_REFUSED: lambda said: (
        f"Consumer {said.text('consumer')} refused {phrases.of_events(said)}, to be tried again: {said.cause()}"
    ),
    Event.EVENTS_PARKED: lambda said: (
        f"Consumer {said.text('consumer')} refused {phrases.of_events(said)} for so long that"
        f" {'it is' if said.number('count') == 1 else 'they are'} put aside: {said.cause()}{said.end('; ', 'advice')}"
    ),
    Event.EVENTS_DROPPED: lambda said: (
        f"Consumer {said.text('consumer')} did not take {said.count('count', 'event')}, which are kept for it no more:"
        f" {said.cause()}; it is told gaps"
    ),
    Event.CONSUMER_DOWN: lambda said: (
        f"Events wait for consumer {said.text('consumer')}, whose endpoint does not answer: {said.cause()}"
    ),
    Event.CONSUMER_UP: lambda said: (
        f"Consumer {said.text('consumer')} takes events again, after {said.length('took_ms')}"
    ),
    Event.CONSUMER_GONE: lambda said: (
        f"Consumer {said.text('consumer')} wants no more events and is paused: {said.cause()}{said.end('; ', 'advice')}"
    ),
    Event.CONSUMER_PAUSED: lambda said: (
        f"Consumer {said.text('consumer')} is paused: it is told nothing until it is resumed"
    ),
    Event.CONSUMER_RESUMED: lambda said: (
        f"Consumer {said.text('consumer')} is told again what happens in chats"
    ),
    Event.CONSUMER_REPLAYED: lambda said: (
        f"An operator asked to try again what consumer {said.text('consumer')} did not take:"
        f" {said.count('count', 'batch', 'batches')}"
    ),
    Event.WATCHDOG_STARVED: lambda said: (
        f"asyncchatd does not move, systemd will start it anew: {said.cause()}"
    ),
    Event.WATCHDOG_FED: lambda said: "asyncchatd moves again, before systemd lost its patience",
    Event.CLOCK_STEPPED: lambda said: (
        f"This host's clock was set {'back' if said.number('step_ms') < 0 else 'forward'} by"
        f" {said.length('step_ms')}"
    ),
    Event.LOOP_STALLED: lambda said: f"asyncchatd itself stood still for {said.length('stall_ms')}",
    Event.LOG_LINES_LOST: lambda said: (
        f"The log lacks {said.count('count', 'line')} here: nobody read them in time"
    ),
    Event.LIBRARY_MESSAGE: lambda said: f"A library, {said.text('logger')}, said: {said.text('message')}",
    Event.CHAT_ADOPTED: lambda said: f"The chat was taken over from its client, at {said.server()}",
    Event.UPLOAD_FAILED: lambda said: (
        f"A customer's file could not be kept while it came in: {said.text('cause')}"
    ),
    Event.CHAT_ORPHANED: lambda said: (
        "A client asked for a chat and GMS' reply was lost: there may be a chat that nobody knows"
    ),
    Event.STORE_OPENED: lambda said: (
        f"The store was opened, with {said.count('sessions', 'chat')} in it ({said.length('took_ms')})"
    ),
    Event.STORE_NEW: lambda said: (
        f"No store was there: a new, empty one was begun at {said.text('store')}, and chats of before are not known"
    ),
    Event.STORE_REPLACED: lambda said: f"The store is not the one of before: {said.text('cause')}",
    Event.STORE_ACCEPTED: lambda said: (
        f"An operator has accepted the store as it is{said.end(' (', 'cause', ')')}"
    ),
    Event.STORE_CORRUPT: lambda said: (
        f"The store was damaged{said.end(' (', 'cause', ')')}, and set aside as {said.text('set_aside')}:"
        " chats that could not be read out of it are known again when they are pushed or registered"
    ),
    Event.STORE_SALVAGED: lambda said: (
        f"Out of the damaged store {said.text('source')} {said.count('sessions', 'chat')} were read,"
        f" {said.count('distrusted', 'chat')} of them with tokens that may be old: these wait for a push or a"
        " registration"
    ),
    Event.STORE_FULL: lambda said: f"Pushes could not be kept and got 503: {said.text('cause')}",
    Event.STORE_PUT_BACK: lambda said: (
        "The database's file was gone or damaged; it was written to its path again, with all that was in it:"
        f" {said.count('sessions', 'chat')}"
    ),
    Event.STORE_RESCUED: lambda said: (
        f"The store: {said.text('cause')}; what was open, {said.count('sessions', 'chat')},"
        f" is saved as {said.text('rescued')}{said.end(' (damaged: ', 'damage', ')')};"
        " nothing is written until somebody has chosen: docs/backup.md"
    ),
    Event.STORE_INCOMPLETE: lambda said: (
        "The write-ahead log of the database is missing, as of a copy that was made while it was in use, or damaged:"
        " what stood in that is missing"
    ),
    Event.STORE_UPGRADED: lambda said: (
        f"The database of an older asyncchatd was brought up to date{said.end('; what it was is kept as ', 'copy')}"
        f"{said.end(', damaged: ' if said.has('copy') else ', without a copy of what it was: ', 'cause')}"
    ),
    Event.STORE_FROM_BACKUP: lambda said: (
        f"The database is a backup of {said.text('copied_at')}; keys replaced since then are not known"
    ),
    Event.STORE_LOG_HELD: lambda said: (
        "Another program reads the database and holds its write-ahead log, which is"
        f" {said.number('bytes') / 1e6:,.0f} MB large and grows until it lets go"
    ),
    Event.STORE_LOG_RELEASED: lambda said: (
        "The program that held the database's write-ahead log let go of it"
    ),
    Event.STORE_DRIVER_SAID: lambda said: (
        f"PostgreSQL or its driver said {said.text('cause')}{said.end(': ', 'detail')}"
    ),
    Event.STORE_UNWRITABLE: lambda said: (
        f"Nothing could be written any more, pushes got 503{said.end(': ', 'cause')}"
    ),
    Event.STORE_WRITABLE: lambda said: (
        f"The store could be written again, after {said.length('outage_ms')}; nothing acknowledged is lost"
    ),
    Event.NODE_JOINED: lambda said: f"The node {said.text('peer')} has joined those that share the database",
    Event.NODE_GONE: lambda said: (
        f"The node {said.text('peer')} has died: {said.count('sessions', 'chat')} that it was about to ping"
        " go to the others"
    ),
    Event.NODE_SILENT: lambda said: (
        f"Nobody has heard of the node {said.text('peer')} for {said.length('silent_ms')}"
    ),
    Event.NODE_HEARD: lambda said: f"The node {said.text('peer')} is heard of again",
    Event.NODE_RETURNED: lambda said: (
        f"The node {said.text('peer')} was away from the database and is back. It holds"
        f" {said.count('sessions', 'chat')} as before, and has lost {said.count('lost', 'chat')} to others"
    ),
    Event.SETTINGS_DIFFER: lambda said: (
        f"The nodes are configured differently: {said.text('key')} is {said.text('values')}"
    ),
    Event.SETTINGS_AGREE: lambda said: f"All nodes have the same {said.text('key')} again",
    Event.STORE_UNENCRYPTED: lambda said: (
        f"Secure keys stand in the database in the clear{said.end('; ', 'advice')}"
    ),
    Event.STORE_RESEALED: lambda said: (
        f"The database was encrypted with the first key of store.keys_file: {said.count('count', 'secure key')}"
    ),
    Event.STORE_REMAINS: lambda said: (
        "What stood in the database before its key changed could not be wiped; the next start tries again"
        f"{said.end(' (', 'cause', ')')}"
    ),
    Event.SECURE_KEY_DAMAGED: lambda said: (
        "Its secure key in the database is damaged and not used: the next push tells the right one"
    ),
    Event.EVENT_DAMAGED: lambda said: "An event of its transcript is damaged; consumers are told of a gap",
    Event.STORE_FAILED: lambda said: f"The store could not be read or written: {said.text('cause')}",
    Event.PUSH_RECEIVED: phrases.pushed,
    Event.PUSH_REFUSED: lambda said: (
        f"A push was refused ({said.text('code')}): {said.text('message')}{said.end(', at ', 'field')}"
    ),
    Event.PUSH_UNKNOWN_SESSION: lambda said: (
        "Nobody has registered this chat, and the push does not carry all its tokens: it cannot be pinged"
    ),
    Event.PUSH_SESSION_ADOPTED: lambda said: (
        f"Nobody had registered this chat, but the push carried all its tokens; it is on {said.server()}"
    ),
    Event.PUSH_TOKENS_IGNORED: lambda said: (
        "A push told older tokens, or a key of another kind; not taken over"
    ),
    Event.PUSH_DEVICE_SHARED: lambda said: (
        f"Pushes name no chat but the device {said.text('device_id')}, which more than {said.number('count')}"
        " chats share: only the most recently active are acknowledged. Each chat needs a device id of its own"
    ),
    Event.PUSH_SECRET_WRONG: lambda said: (
        f"Strangers: {said.count('count', 'push', 'pushes')} with a wrong secret or none, lately from"
        f" {said.text('client')}"
    ),
    Event.CLIENT_REFUSED: lambda said: (
        f"The {phrases.listener(said)} refused {said.count('count', 'client')}, lately {said.text('client')}:"
        f" {said.cause()}"
    ),
    Event.CONNECTIONS_FULL: lambda said: (
        f"The {phrases.listener(said)} had all its connections taken and closed or refused"
        f" {said.number('count'):,}, lately of {said.text('client')}: {said.cause()}"
    ),
    Event.ACCEPT_FAILED: lambda said: (
        f"The {phrases.listener(said)} could not accept a connection: {said.cause()}"
    ),
    Event.TLS_RENEWED: lambda said: f"The {phrases.listener(said)} shows its new certificate from now on",
    Event.TLS_REFUSED: lambda said: (
        f"The changed TLS files of the {phrases.listener(said)} are no use, the old ones stay: {said.cause()}"
    ),
    Event.SESSION_REGISTERED: lambda said: (
        f"The application registered it ({said.text('outcome')}), on {said.server()}"
    ),
    Event.SESSIONS_REGISTERED: lambda said: (
        f"The application registered {said.count('count', 'chat')} at once"
        + (
            f", {said.number('kept'):,} of them with an old key, which changed nothing"
            if said.number("kept")
            else ""
        )
        + (f", {said.number('refused'):,} were not accepted" if said.number("refused") else "")
    ),
    Event.SESSION_COMPLETED: lambda said: f"All its tokens are known now; it is on {said.server()}",
    Event.SESSION_TOKENS_CHANGED: phrases.moved,
    Event.SESSION_ENDED: phrases.ended,
    Event.SESSION_REMOVED: lambda said: (
        "It was ended over the control API"
        if said.text("cause") == "request"
        else f"It was removed ({said.cause()})"
    ),
    Event.SESSION_TAKEN: lambda said: (
        f"The application took it for {said.length('for_ms')}, to ask GMS itself"
    ),
    Event.SESSION_RELEASED: lambda said: (
        "The application gave it back with what GMS replied"
        if said.text("cause") == "registration"
        else "The application gave it back"
    ),
    Event.TAKE_RAN_OUT: lambda said: (
        "The application did not give it back in time: it is pinged, and cannot be taken again before"
    ),
    Event.ACKNOWLEDGEMENT_ASKED: lambda said: (
        f"Consumer {said.text('consumer')} was asked to acknowledge the push, and has {said.length('for_ms')} for it"
    ),
    Event.ACKNOWLEDGEMENT_CAME: lambda said: (
        "The application acknowledged the push with a Refresh of its own"
        + (" and told what GMS replied" if said.text("cause") == "registration" else "")
    ),
    Event.ACKNOWLEDGEMENT_RAN_OUT: lambda said: (
        f"Consumer {said.text('consumer')} did not acknowledge the push in time: it is pinged"
    ),
    Event.PING_REQUESTED: lambda said: "Somebody asked for a ping of it",
    Event.PING_OK: phrases.ping_ok,
    Event.KEEPALIVE_OK: lambda said: f"A keepalive was answered (GMS took {said.length('took_ms')})",
    Event.PING_RETRY: phrases.retry,
    Event.PING_REFUSED: lambda said: (
        f"GMS refused its ping: {said.cause()}{phrases.own_words(said)}; it is not called over for that, and is pinged"
        " again as a keepalive"
    ),
    Event.PING_FAILED: lambda said: f"asyncchatd itself failed at a ping of it: {said.text('cause')}",
    Event.PING_FOREIGN_REPLY: lambda said: (
        f"The answer to its ping spoke of another chat; nothing was taken from it{said.end(' (', 'node', ')')}"
    ),
    Event.ANSWERS_LOST: lambda said: (
        f"What {said.count('count', 'answer')} of GMS taught could not be written before the end,"
        f" new keys or the chat's end: {said.text('chat_ids')}"
    ),
    Event.ANSWER_SET_ASIDE: lambda said: f"What GMS answered could not be written: {said.cause()}",
    Event.LEASE_LOST: lambda said: "Its ping took so long that another had taken it over",
    Event.GMS_NODE_RESTING: lambda said: (
        f"GMS node {said.text('node')} is left alone for {said.length('rest_ms')}: {said.cause()}"
    ),
    Event.GMS_NODE_BACK: lambda said: f"GMS node {said.text('node')} answers again",
    Event.GMS_UNAVAILABLE: lambda said: f"No GMS node answers any more: {said.cause()}",
    Event.GMS_SLOW: lambda said: (
        f"GMS answers slowly, so no more than {said.text('in_flight_limit')} requests are kept in flight"
    ),
    Event.GMS_SLOW_BY_ITSELF: lambda said: (
        "GMS answers slowly however few requests it gets, so"
        f" {said.text('in_flight_limit')} are kept in flight again"
    ),
    Event.GMS_AVAILABLE: lambda said: (
        f"GMS answers again, after {said.length('outage_ms')} in which no node did"
    ),
    Event.SERVER_UP: lambda said: (
        f"The Chat Server {said.server()} is up{said.end(', process ', 'process_os_pid')}"
    ),
    Event.SERVER_SUSPECT: lambda said: f"The Chat Server {said.server()} is suspect{said.end(': ', 'cause')}",
    Event.SERVER_OUTVOTED: lambda said: (
        f"The Chat Server {said.server()} is not called down{said.end(': ', 'cause')}"
    ),
    Event.SERVER_LINE_GIVEN_UP: lambda said: (
        f"The Chat Server {said.server()} answers nobody while an idle connection to its health port is open, so none"
        " is kept now"
    ),
    Event.SERVER_DOWN: lambda said: (
        f"The Chat Server {said.server()} was lost{said.end(': ', 'cause')}"
        + (f" ({said.number('attempts'):g} reads in a row)" if said.has("attempts") else "")
    ),
    Event.SERVER_RESTARTED: lambda said: (
        f"The Chat Server {said.server()} was restarted, its chats are gone from its memory"
        f"{said.end(': process ', 'previous_pid')}{said.end(' is now ', 'process_os_pid')}"
    ),
    Event.SERVER_UNREADABLE: lambda said: (
        f"The Chat Server {said.server()} is alive, but its health page is not understood{said.end(': ', 'cause')}"
    ),
    Event.SERVER_IDENTITY_CHANGED: phrases.identity,
    Event.SERVER_IDENTITY_DISPUTED: lambda said: (
        f"The Chat Server {said.server()} is not one process: several answer at its health_url by turns, so its loss"
        f" may go unseen{said.end(' (', 'cause', ')')}"
    ),
    Event.SERVER_COUNTERS_RESET: lambda said: (
        f"The counters of the Chat Server {said.server()} began anew; it was not restarted"
    ),
    Event.SERVER_ALIAS_ASSUMED: lambda said: (
        f"The Chat Server {said.server()} never said which one it is. It is taken for alias {said.text('alias')}, which"
        f" is no other's; {said.count('sessions', 'chat')} there are restored"
    ),
    Event.SESSIONS_UNWATCHED: lambda said: (
        f"Nobody watches {said.count('sessions', 'chat')} on alias {said.text('alias')}, which no [[chat_server]] has:"
        " its loss would go unnoticed"
    ),
    Event.SELF_SUSPECTED: lambda said: (
        f"The trouble is probably this host's own or its network's, so no Chat Server is called lost:"
        f" {said.text('cause')}"
    ),
    Event.RESTORATION_STARTED: phrases.started,
    Event.RESTORATION_PROGRESS: phrases.progress,
    Event.RESTORATION_FINISHED: phrases.finished,
    Event.RESTORATION_INCOMPLETE: phrases.incomplete,
}

COUNTED: Mapping[str, tuple[str, str]] = {
    Event.PUSH_RECEIVED: ("1 push", "{} pushes"),
    Event.PING_OK: ("1 ping answered", "{} pings answered"),
    Event.PING_REFUSED: ("1 ping refused by GMS", "{} pings refused by GMS"),
    Event.SESSION_REGISTERED: ("1 registration", "{} registrations"),
    Event.SESSION_TOKENS_CHANGED: ("1 chat with new tokens", "{} chats with new tokens"),
    Event.SESSION_COMPLETED: ("1 chat completed", "{} chats completed"),
    Event.SESSION_ENDED: ("1 chat over", "{} chats over"),
    Event.SESSION_REMOVED: ("1 chat removed", "{} chats removed"),
    Event.SESSION_TAKEN: ("1 chat taken by the application", "{} takes by the application"),
    Event.SESSION_RELEASED: ("1 chat given back", "{} chats given back"),
    Event.TAKE_RAN_OUT: ("1 chat not given back in time", "{} chats not given back in time"),
    Event.ACKNOWLEDGEMENT_ASKED: ("1 push to acknowledge", "{} pushes to acknowledge"),
    Event.ACKNOWLEDGEMENT_CAME: (
        "1 push acknowledged by the application",
        "{} pushes acknowledged by the application",
    ),
    Event.ACKNOWLEDGEMENT_RAN_OUT: ("1 push not acknowledged in time", "{} pushes not acknowledged in time"),
    Event.CHAT_ADOPTED: ("1 chat taken over from its client", "{} chats taken over from their clients"),
    Event.CHAT_OPENED: ("1 chat begun by a client", "{} chats begun by clients"),
    Event.CALL_DONE: ("1 call of a client", "{} calls of clients"),
    Event.EVENTS_DELIVERED: ("1 delivery to a consumer", "{} deliveries to consumers"),
    Event.EVENTS_SHOWN: ("1 piece of news on a customer's page", "{} pieces of news on customers' pages"),
    Event.PUSH_SESSION_ADOPTED: ("1 chat adopted from a push", "{} chats adopted from pushes"),
    Event.PUSH_UNKNOWN_SESSION: (
        "1 chat that nobody registered",
        "{} chats that nobody registered",
    ),
    Event.PUSH_TOKENS_IGNORED: ("1 late push", "{} late pushes"),
    Event.PING_REQUESTED: ("1 ping asked for", "{} pings asked for"),
}
"""The events with the trait of that name in words: one of them, and several."""


def sentence(line: Line, servers: Mapping[str, str]) -> str:
    """What happened, in words. `servers` are names of Chat Servers by alias."""
    said = Said(line.fields, servers)
    if line.event in SENTENCES:
        return SENTENCES[line.event](said)
    if not line.event:
        return f"{said.text('identifier', 'another program')} said: {said.text('message')}"
    nested = any(isinstance(value, list | Mapping) for value in line.fields.values())
    fields = ("; " if nested else ", ").join(
        f"{name.replace('_', ' ')} {words}"
        for name, value in line.fields.items()
        if (words := as_words(value))
    )
    known = Event._value2member_map_.get(line.event)
    what = known.meaning.rstrip(".") if isinstance(known, Event) else line.event.replace("_", " ")
    return f"{what} ({fields})" if fields else what
