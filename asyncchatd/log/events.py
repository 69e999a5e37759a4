"""The catalogue of events: names and fields that programs can rely on.

`Event` is the only place where an event is named; `docs/log-events.md` is written from it (`fields.py`). To add an
event, add a member, what a new field means to `FIELDS` in `fields.py`, and its sentence to
`asyncchatd/story/sentences.py`. How `asyncchatd logs` treats it is said by the member itself: its `Subject`, and the
`Trait`s it has. What was forgotten is named by a test. Modules write `log = get_logger()` and
`log.info(Event.PUSH_RECEIVED, chat_id=...)`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Level = Literal["debug", "info", "warning", "error", "critical"]


class Subject(StrEnum):
    """Of whom an event speaks: by this `asyncchatd logs` knows to whose story it belongs."""

    CHAT = "chat"
    """One chat."""
    SERVER = "server"
    """One Chat Server."""
    RESTORATION = "restoration"
    """One restoration."""
    PLANT = "plant"
    """What every chat depends on: asyncchatd itself, its store, GMS as a whole. It belongs to each chat's story."""
    OTHER = "other"
    """Nothing of which a story is told: it stands where everything is told."""


class Trait(StrEnum):
    """How `asyncchatd logs` treats an event, besides whose it is."""

    COUNTED = "counted"
    """Too frequent to be told chat by chat: where many chats are told, it is counted, in the words of
    `story.sentences.COUNTED`."""
    FRUITLESS = "fruitless"
    """A ping without a result: where many chats are told, it is counted by its cause."""
    SUMMARY = "summary"
    """A day's summary tells it one by one, as it does errors."""


def _story(name: str, words: str) -> tuple[Subject, frozenset[Trait]]:
    """The subject, and the traits that may follow it. Raises `TypeError`, with the event's name."""
    subject, *traits = words.split() or [""]
    if subject not in set(Subject) or not set(traits) <= set(Trait):
        raise TypeError(
            f"the event {name} has to say whose story it belongs to ({', '.join(Subject)}), and after that may say how"
            f" it is told ({', '.join(Trait)}); it says {words!r}"
        )
    return Subject(subject), frozenset(map(Trait, traits))


class Event(StrEnum):
    """Every event: its name, level, fields, how `asyncchatd logs` treats it, and what happened. The value is the
    name."""

    level: Level
    fields: tuple[str, ...]
    subject: Subject
    traits: frozenset[Trait]
    meaning: str

    def __new__(cls, name: str, level: Level, fields: str, story: str, meaning: str) -> Event:
        event = str.__new__(cls, name)
        event._value_ = name
        event.level = level
        event.fields = tuple(fields.split())
        event.subject, event.traits = _story(name, story)
        event.meaning = meaning
        return event

    # the daemon
    DAEMON_STARTING = (
        "daemon_starting", "info", "version config pid", "plant summary",
        "The configuration was read; the parts are being started.",
    )  # fmt: skip
    DAEMON_READY = (
        "daemon_ready", "info", "receiver control metrics gateway sessions servers took_ms", "plant",
        "Pushes and requests are taken. `sessions` counts the live ones.",
    )  # fmt: skip
    DAEMON_STOPPING = (
        "daemon_stopping", "info", "cause in_flight", "plant",
        "Nothing new is accepted; what is in flight is being finished.",
    )  # fmt: skip
    DAEMON_STOPPED = (
        "daemon_stopped", "info", "took_ms in_flight", "plant summary",
        "Everything is settled and the store is closed. `in_flight` counts what the grace time cut off.",
    )  # fmt: skip
    DAEMON_FAILED = (
        "daemon_failed", "critical", "part cause", "plant summary",
        "A part ended that never should; the daemon stops and leaves the restart to systemd.",
    )  # fmt: skip
    CONFIG_WARNING = (
        "config_warning", "warning", "key message advice", "other summary",
        "The configuration is valid, but something in it is probably not meant.",
    )  # fmt: skip
    CONFIG_RELOADED = (
        "config_reloaded", "info", "config changed", "other summary",
        "The changed configuration was taken over.",
    )  # fmt: skip
    LOG_FILE_BEGUN = (
        "log_file_begun", "info", "file", "plant summary",
        "The last line on standard output, in the journal under systemd: what follows is in `log.file`.",
    )  # fmt: skip
    LOG_FILE_LOST = (
        "log_file_lost", "error", "file cause", "other summary",
        "`log.file` could not be opened anew. Lines go on to the file that was open, whatever its name is now.",
    )  # fmt: skip
    CONFIG_REFUSED = (
        "config_refused", "error", "config cause advice", "other",
        "The changed configuration was not taken over; the daemon runs on as before.",
    )  # fmt: skip
    WATCHDOG_STARVED = (
        "watchdog_starved", "error", "cause", "plant",
        "The daemon does not move: systemd's watchdog is not fed any more, and systemd will start it anew.",
    )  # fmt: skip
    WATCHDOG_FED = (
        "watchdog_fed", "info", "", "plant summary",
        "The daemon moves again, before systemd lost its patience; the watchdog is fed again.",
    )  # fmt: skip
    CLOCK_STEPPED = (
        "clock_stepped", "warning", "step_ms", "plant summary",
        "The system's clock was set; due times are read anew.",
    )  # fmt: skip
    LOOP_STALLED = (
        "loop_stalled", "warning", "stall_ms", "plant summary",
        "The daemon itself stood still for so long; it does not hold that against the Chat Servers.",
    )  # fmt: skip
    LOG_LINES_LOST = (
        "log_lines_lost", "warning", "count", "other summary",
        "Whoever reads the log stood still, or its disk was full, for so long that so many lines were dropped here.",
    )  # fmt: skip
    LIBRARY_MESSAGE = (
        "library_message", "warning", "logger message", "other",
        "A library, such as aiohttp or asyncio, reported something. The level is the library's.",
    )  # fmt: skip

    # listeners
    CLIENT_REFUSED = (
        "client_refused", "warning", "listener cause client count", "other summary",
        "Clients were refused: not of `allow`, no token or none with the right, no TLS. For each cause at most one"
        " line a minute.",
    )  # fmt: skip
    CONNECTIONS_FULL = (
        "connections_full", "warning", "listener cause client count", "other summary",
        "All of `max_connections` were taken and some were closed or refused. At most one line a minute;"
        " the rest is told when the minute is over.",
    )  # fmt: skip
    ACCEPT_FAILED = (
        "accept_failed", "error", "listener cause", "other",
        "A connection could not be accepted, for want of open files for instance. It is tried again.",
    )  # fmt: skip
    TLS_RENEWED = (
        "tls_renewed", "info", "listener", "other summary",
        "The TLS files changed; connections from now on get the new certificate.",
    )  # fmt: skip
    TLS_REFUSED = (
        "tls_refused", "error", "listener cause", "other",
        "The TLS files changed and are no use; those from before stay in use until they change again.",
    )  # fmt: skip

    # the store
    STORE_OPENED = (
        "store_opened", "info", "store sessions took_ms", "other",
        "The store is open, checked and of the current version. `sessions` counts all in it, ended and incomplete"
        " ones too.",
    )  # fmt: skip
    STORE_NEW = (
        "store_new", "warning", "store advice", "plant summary",
        "No database was there, and a new, empty one was made: no session is pinged until one is registered or"
        " pushed. Expected at the first start only.",
    )  # fmt: skip
    STORE_REPLACED = (
        "store_replaced", "warning", "store cause advice", "plant summary",
        "The database is not the one of before: an empty, an older or another one is in its place. Told at each start"
        " until it is accepted.",
    )  # fmt: skip
    STORE_ACCEPTED = (
        "store_accepted", "info", "store cause", "plant",
        "An operator has accepted the database that took the place of the one of before.",
    )  # fmt: skip
    STORE_CORRUPT = (
        "store_corrupt", "error", "store set_aside cause", "plant summary",
        "The database is damaged. It was set aside; `store_salvaged` or `store_put_back` says what was saved of it. The"
        " rest comes back with pushes and registrations.",
    )  # fmt: skip
    STORE_SALVAGED = (
        "store_salvaged", "error", "store source sessions distrusted pushes", "plant summary",
        "All that can be read of a damaged database is in a new one. `distrusted` sessions are kept and not pinged"
        " until a push or a registration tells their tokens: docs/backup.md.",
    )  # fmt: skip
    STORE_FULL = (
        "store_full", "error", "cause", "plant summary",
        "Pushes cannot be kept at the moment and are answered with 503. One line when it begins.",
    )  # fmt: skip
    STORE_FAILED = (
        "store_failed", "error", "cause", "plant summary",
        "The store could not be read or written. What was to be written is tried again after a pause.",
    )  # fmt: skip
    STORE_DRIVER_SAID = (
        "store_driver_said", "debug", "cause code detail", "other",
        "What PostgreSQL or its driver said of an error that is told elsewhere in our words; `cause` is its kind."
        " Not where it may show a value.",
    )  # fmt: skip
    STORE_UNWRITABLE = (
        "store_unwritable", "error", "store cause", "plant",
        "The disk is full or read-only, for instance. Pushes are answered with 503. One line when it begins.",
    )  # fmt: skip
    STORE_WRITABLE = (
        "store_writable", "info", "store outage_ms", "plant summary",
        "The store can be written again. Nothing that had been acknowledged is lost.",
    )  # fmt: skip
    STORE_PUT_BACK = (
        "store_put_back", "warning", "store sessions", "plant summary",
        "The database's file was gone or damaged. It was written to its path again, from what was open; nothing is"
        " lost.",
    )  # fmt: skip
    STORE_RESCUED = (
        "store_rescued", "error", "store rescued sessions cause damage", "plant",
        "Something else lies at the database's path. What was open is saved in `rescued`; nothing is written until"
        " somebody has chosen between them: docs/backup.md.",
    )  # fmt: skip
    STORE_INCOMPLETE = (
        "store_incomplete", "error", "store set_aside advice", "plant",
        "The database was in use when it was copied, and its write-ahead log is missing, or damaged and kept in"
        " `set_aside`: so is what stood in it.",
    )  # fmt: skip
    STORE_UPGRADED = (
        "store_upgraded", "warning", "store before schema copy cause", "plant summary",
        "The database of an older asyncchatd was brought up to date. `copy` is what it was, for the way back:"
        " docs/upgrading.md. It holds secure keys: remove it when nobody needs it. `cause` says why there"
        " is none, or what is damaged in it.",
    )  # fmt: skip
    STORE_FROM_BACKUP = (
        "store_from_backup", "warning", "store copied_at advice", "plant summary",
        "The database is a backup. What GMS replaced since `copied_at` is not known: docs/backup.md.",
    )  # fmt: skip
    STORE_LOG_HELD = (
        "store_log_held", "warning", "store bytes", "plant summary",
        "Another program reads the database and holds its write-ahead log, which grows until it lets go.",
    )  # fmt: skip
    STORE_LOG_RELEASED = (
        "store_log_released", "info", "store bytes", "plant",
        "The program that held the write-ahead log has let go of it.",
    )  # fmt: skip
    NODE_JOINED = (
        "node_joined", "info", "peer number", "plant",
        "This asyncchatd shares its database with others from now on, or may.",
    )  # fmt: skip
    NODE_GONE = (
        "node_gone", "warning", "peer number sessions silent_ms", "plant summary",
        "An asyncchatd that shares the database has died. `sessions` that it was about to ping are pinged by the others"
        " once their leases are over.",
    )  # fmt: skip
    NODE_SILENT = (
        "node_silent", "warning", "peer number silent_ms", "plant summary",
        "Nobody hears of an asyncchatd that shares the database, or knows that it has died: it is stopped, or does not"
        " reach the database. What it has claimed is left to it for `hold`.",
    )  # fmt: skip
    NODE_HEARD = (
        "node_heard", "info", "peer number", "plant",
        "One that was silent is heard of again.",
    )  # fmt: skip
    NODE_RETURNED = (
        "node_returned", "warning", "peer number sessions lost", "plant summary",
        "This asyncchatd was away from the database and is back. What it held it holds again, but for those that are"
        " `lost`: others have pinged them meanwhile, and an answer with a new key came too late.",
    )  # fmt: skip
    SETTINGS_DIFFER = (
        "settings_differ", "error", "key values", "plant summary",
        "The asyncchatd processes that share the database are configured differently in what must be the same. The"
        " smallest `restoration.max_rate` of all is kept meanwhile.",
    )  # fmt: skip
    SETTINGS_AGREE = (
        "settings_agree", "info", "key", "plant",
        "They are the same for all again, or whoever had another one is gone. One that is silent keeps what it said"
        " last.",
    )  # fmt: skip
    STORE_UNENCRYPTED = (
        "store_unencrypted", "warning", "store advice", "other",
        "Whoever gets the database, or a backup of it, has the secure keys of all chats. One line at start.",
    )  # fmt: skip
    STORE_RESEALED = (
        "store_resealed", "info", "store count took_ms", "other summary",
        "All secure keys are encrypted with the first key of `store.keys_file` now; others may be removed.",
    )  # fmt: skip
    STORE_REMAINS = (
        "store_remains", "error", "store cause", "other",
        "What stood in the database before its key changed could not be wiped; the next start tries again.",
    )  # fmt: skip
    SECURE_KEY_DAMAGED = (
        "secure_key_damaged", "error", "chat_id device_id", "chat",
        "An encrypted secure key is damaged or another chat's, and not used. The next push tells the right one.",
    )  # fmt: skip
    EVENT_DAMAGED = (
        "event_damaged", "error", "chat_id", "chat",
        "An encrypted event of a transcript is damaged or another chat's. Consumers are told of a gap.",
    )  # fmt: skip

    # delivery
    EVENTS_DELIVERED = (
        "events_delivered", "info", "chat_id consumer count first_index last_index tries took_ms lag_ms",
        "chat counted",
        "A consumer took events of a chat. `lag_ms`: since the oldest of them was fetched.",
    )  # fmt: skip
    EVENTS_REFUSED = (
        "events_refused", "warning", "chat_id consumer count first_index last_index cause", "chat",
        "A consumer refused events of a chat; they are tried again. Told at the first try.",
    )  # fmt: skip
    EVENTS_PARKED = (
        "events_parked", "error", "chat_id consumer count first_index last_index tries cause advice", "chat summary",
        "A consumer refused events of a chat for so long that they are put aside until they are replayed.",
    )  # fmt: skip
    EVENTS_DROPPED = (
        "events_dropped",
        "warning",
        "consumer count cause",
        "plant summary",
        "Events that the consumer did not take are not kept for it any more; it is told gaps. `cause`: `keep`, they"
        " waited for so long; `max_backlog`, so many waited; `bounds`, more than is kept of a chat, or of all.",
    )
    CONSUMER_DOWN = (
        "consumer_down", "warning", "consumer cause", "plant summary",
        "A consumer's endpoint does not answer. One request at a time finds out when it is back.",
    )  # fmt: skip
    CONSUMER_UP = (
        "consumer_up", "info", "consumer took_ms", "plant summary",
        "A consumer's endpoint answers again, after `took_ms`.",
    )  # fmt: skip
    CONSUMER_GONE = (
        "consumer_gone", "error", "consumer cause advice", "plant summary",
        "A consumer's endpoint wants no more events (410): it is paused.",
    )  # fmt: skip
    CONSUMER_PAUSED = (
        "consumer_paused", "info", "consumer", "other summary",
        "The consumer is told nothing until it is resumed; what happens meanwhile is kept for it.",
    )  # fmt: skip
    CONSUMER_RESUMED = (
        "consumer_resumed", "info", "consumer", "other summary",
        "The consumer is told again what happens in chats, and first what it missed.",
    )  # fmt: skip
    CONSUMER_REPLAYED = (
        "consumer_replayed", "info", "consumer parked count", "other summary",
        "An operator asked to try again at once what the consumer's webhook did not take, or with `parked` what was"
        " given up. `count` says how many batches.",
    )  # fmt: skip
    ACKNOWLEDGEMENT_ASKED = (
        "acknowledgement_asked", "info", "chat_id consumer for_ms", "chat counted",
        "A consumer is told of a push, to acknowledge it with a Refresh of its own; the session is not pinged"
        " meanwhile.",
    )  # fmt: skip
    ACKNOWLEDGEMENT_CAME = (
        "acknowledgement_came", "info", "chat_id alias cause", "chat counted",
        "The chat application sent the Refresh that it was asked for, and told it with the tokens of GMS' reply"
        " (`registration`) or without (`request`).",
    )  # fmt: skip
    ACKNOWLEDGEMENT_RAN_OUT = (
        "acknowledgement_ran_out", "warning", "chat_id alias consumer", "chat counted",
        "The chat application did not say in time that it sent the Refresh it was asked for; the session is pinged.",
    )  # fmt: skip

    # the gateway
    CHAT_OPENED = (
        "chat_opened", "info", "chat_id alias service node took_ms", "chat counted",
        "A chat client asked for a chat; the session is kept alive from now on.",
    )  # fmt: skip
    CHAT_ADOPTED = (
        "chat_adopted", "info", "chat_id alias service node", "chat counted",
        "A chat that was begun without the gateway was taken over with a request of its client; the session is kept"
        " alive from now on.",
    )  # fmt: skip
    CHAT_ORPHANED = (
        "chat_orphaned", "error", "service node", "other summary",
        "A chat client asked for a chat and GMS' reply was lost: there may be a chat that nobody knows.",
    )  # fmt: skip
    CALL_DONE = (
        "call_done", "info", "chat_id alias operation outcome node waited_ms took_ms", "chat counted",
        "A call of a chat client was sent. `waited_ms`: for its turn, and for a ping of the session.",
    )  # fmt: skip
    EVENTS_SHOWN = (
        "events_shown", "info", "chat_id count first_index last_index lag_ms", "chat counted",
        "A page of the customer was told events of a chat that none was told before. `lag_ms`: since the oldest of them"
        " was fetched.",
    )  # fmt: skip
    CALL_UNKNOWN = (
        "call_unknown", "warning", "chat_id operation", "chat summary",
        "Nobody knows what became of a chat client's call; the client was told to try again, and may repeat it.",
    )  # fmt: skip
    UPLOAD_FAILED = (
        "upload_failed", "error", "cause advice", "other summary",
        "A file of a customer's could not be kept while it came in; the client was told to come again.",
    )  # fmt: skip
    PUSHES_MISSING = (
        "pushes_missing", "error", "looks misses", "plant summary",
        "Of the last `looks` at chats whose pages are open, `misses` showed what no push had announced. GMS is asked"
        " about all such chats until its pushes come again.",
    )  # fmt: skip
    PUSHES_COMING = (
        "pushes_coming", "info", "looks misses", "plant summary",
        "Looks find no more than pushes announce: they are relied on again.",
    )  # fmt: skip

    # pushes
    PUSH_RECEIVED = (
        "push_received", "info", "chat_id device_id known type sender quit_code reason resend bytes", "chat counted",
        "A push notification is on disk and answered; its session is due.",
    )  # fmt: skip
    PUSH_REFUSED = (
        "push_refused", "warning", "code field bytes message", "other",
        "A push with a valid secret could not be used; it was answered with an error.",
    )  # fmt: skip
    PUSH_UNKNOWN_SESSION = (
        "push_unknown_session", "warning", "chat_id alias device_id", "chat counted",
        "A push for a session nobody registered, without all tokens. It is kept as incomplete, not pinged."
        " Told with its first push, and again when its chat id becomes known.",
    )  # fmt: skip
    PUSH_SESSION_ADOPTED = (
        "push_session_adopted", "info", "chat_id alias", "chat counted",
        "A push for a session nobody registered carried all tokens; the session is kept alive from now on.",
    )  # fmt: skip
    PUSH_TOKENS_IGNORED = (
        "push_tokens_ignored", "info", "chat_id alias cause", "chat counted",
        "A push told tokens that are older than the known ones, or a key of another kind (Chat API over CometD);"
        " they were not taken over.",
    )  # fmt: skip
    PUSH_DEVICE_SHARED = (
        "push_device_shared", "warning", "device_id count", "other",
        "Pushes name no chat but a device that more chats share than `count`; only the most recently active"
        " are acknowledged. Each chat needs a `GCTI_GMS_PushDeviceId` of its own. One line in ten minutes for"
        " each device.",
    )  # fmt: skip
    PUSH_SECRET_WRONG = (
        "push_secret_wrong", "warning", "count client", "other summary",
        "Pushes came with a wrong secret or none. At most one line a minute, with the count since the last;"
        " the rest is told when the minute is over.",
    )  # fmt: skip

    # sessions
    SESSION_REGISTERED = (
        "session_registered", "info", "chat_id alias service outcome", "chat counted",
        "A session was registered, or registered anew, over the control API.",
    )  # fmt: skip
    SESSIONS_REGISTERED = (
        "sessions_registered", "info", "count created kept refused took_ms", "other",
        "Many sessions were registered at once; `created` of them were not known before. `kept` came with a key that"
        " is old, or may be after `store distrust`: their tokens stay as they are.",
    )  # fmt: skip
    SESSION_COMPLETED = (
        "session_completed", "info", "chat_id alias", "chat counted",
        "An incomplete session has all its tokens now and is kept alive from now on.",
    )  # fmt: skip
    SESSION_TOKENS_CHANGED = (
        "session_tokens_changed", "info", "chat_id alias previous_alias cause", "chat counted",
        "GMS or a push gave the session new tokens, another alias for instance.",
    )  # fmt: skip
    SESSION_ENDED = (
        "session_ended", "info", "chat_id alias cause detail reason restoration first_index last_index", "chat counted",
        "GMS said that the chat is over; it is not pinged any more.",
    )  # fmt: skip
    SESSION_REMOVED = (
        "session_removed", "info", "chat_id alias cause", "chat counted",
        "A session was ended over the control API, or deleted after its time of being kept.",
    )  # fmt: skip
    SESSION_TAKEN = (
        "session_taken", "info", "chat_id alias for_ms", "chat counted",
        "The chat application took the session, to send a request to GMS itself; it is not pinged meanwhile.",
    )  # fmt: skip
    SESSION_RELEASED = (
        "session_released", "info", "chat_id alias cause", "chat counted",
        "The chat application gave the session back, with the tokens of GMS' reply (`registration`) or without"
        " (`release`); it is pinged at once.",
    )  # fmt: skip
    TAKE_RAN_OUT = (
        "take_ran_out", "warning", "chat_id alias", "chat counted",
        "The chat application took the session and did not give it back in time; it is pinged, and cannot be taken"
        " again before.",
    )  # fmt: skip

    # pings
    PING_REQUESTED = (
        "ping_requested", "info", "chat_id alias", "chat counted",
        "Somebody asked over the control API for a ping of this session.",
    )  # fmt: skip
    PING_OK = (
        "ping_ok", "info",
        "chat_id alias previous_alias reason restoration node attempt waited_ms took_ms first_index last_index",
        "chat counted",
        "A ping Refresh was answered with success: it acknowledged a push, restored the session, was asked"
        " for, came after trouble, or fetched events for a consumer.",
    )  # fmt: skip
    KEEPALIVE_OK = (
        "keepalive_ok", "debug", "chat_id alias node took_ms", "chat",
        "A keepalive was answered at its first try and fetched nothing, as nearly always.",
    )  # fmt: skip
    PING_RETRY = (
        "ping_retry", "warning", "chat_id alias reason restoration node cause detail said attempt next_ms",
        "chat fruitless",
        "A ping Refresh brought no result; it is repeated after a pause.",
    )  # fmt: skip
    PING_REFUSED = (
        "ping_refused", "error", "chat_id alias reason restoration node cause detail said", "chat counted",
        "GMS said that repeating this Refresh will not help, and not that the chat is over. The session waits for"
        " its keepalive; each time in a row that this is refused, it waits twice as long, up to 22 hours.",
    )  # fmt: skip
    PING_FAILED = (
        "ping_failed", "error", "chat_id cause", "chat fruitless",
        "The daemon itself failed at a ping, which is a fault to report. The ping is repeated after a pause.",
    )  # fmt: skip
    PING_FOREIGN_REPLY = (
        "ping_foreign_reply", "error", "chat_id alias reason restoration node", "chat fruitless",
        "The answer to a ping speaks of another chat. Nothing was taken over from it.",
    )  # fmt: skip
    ANSWERS_LOST = (
        "answers_lost", "error", "count chat_ids advice", "other",
        "The daemon ends, and its store has not taken what these answers of GMS taught: new keys, or the chat's end."
        " `chat_ids` names the first of them.",
    )  # fmt: skip
    ANSWER_SET_ASIDE = (
        "answer_set_aside", "error", "chat_id reason cause", "chat",
        "The database refused to write what GMS answered. The session goes on without what it was refused for.",
    )  # fmt: skip
    LEASE_LOST = (
        "lease_lost", "warning", "chat_id reason", "chat fruitless",
        "A ping took longer than its session's lease, and somebody else had claimed the session meanwhile.",
    )  # fmt: skip

    # GMS
    GMS_NODE_RESTING = (
        "gms_node_resting", "warning", "node cause detail rest_ms", "other",
        "A GMS node failed and is left alone for a while; the others take its part.",
    )  # fmt: skip
    GMS_NODE_BACK = (
        "gms_node_back", "info", "node", "other",
        "A GMS node that had failed answers again.",
    )  # fmt: skip
    GMS_UNAVAILABLE = (
        "gms_unavailable", "error", "cause", "plant summary",
        "No GMS node answers. Sessions stay due and are pinged when one does.",
    )  # fmt: skip
    GMS_SLOW = (
        "gms_slow", "warning", "in_flight_limit took_ms", "other summary",
        "Answers take longer than a tenth of `gms.timeout`, so fewer requests are kept in flight. `took_ms` is what"
        " they took lately. Told once a minute at most.",
    )  # fmt: skip
    GMS_SLOW_BY_ITSELF = (
        "gms_slow_by_itself", "warning", "in_flight_limit took_ms", "other summary",
        "Fewer requests in flight have not made the answers faster, so as many as before are sent again.",
    )  # fmt: skip
    GMS_AVAILABLE = (
        "gms_available", "info", "node outage_ms", "plant summary",
        "GMS answers again after none of its nodes did.",
    )  # fmt: skip

    # Chat Servers and restorations
    SERVER_UP = (
        "server_up", "info", "server alias process_os_pid", "server",
        "A Chat Server's health page can be read.",
    )  # fmt: skip
    SERVER_SUSPECT = (
        "server_suspect", "warning", "server alias cause", "server",
        "A Chat Server's health page could not be read; it is tried faster now.",
    )  # fmt: skip
    SERVER_OUTVOTED = (
        "server_outvoted", "warning", "server alias cause", "server",
        "A Chat Server is not reached from here, and not called down: the other nodes that share the database reach it,"
        " or too few agree, or its `health_url` leads elsewhere from here. Or it is reached from here, and stays down,"
        " as most of them do not reach it. One line when it begins.",
    )  # fmt: skip
    SERVER_LINE_GIVEN_UP = (
        "server_line_given_up", "info", "server alias for_ms", "server",
        "It answers nobody while an idle connection to its health port is open, so none is kept for so long. Its end"
        " is noticed by reading the page alone.",
    )  # fmt: skip
    SERVER_DOWN = (
        "server_down", "error", "server alias cause attempts", "server summary",
        "A Chat Server is lost: its page could not be read `fall` times in a row.",
    )  # fmt: skip
    SERVER_RESTARTED = (
        "server_restarted", "error", "server alias process_os_pid previous_pid cause", "server summary",
        "A Chat Server is another process than before; its sessions are gone from its memory.",
    )  # fmt: skip
    SERVER_UNREADABLE = (
        "server_unreadable", "warning", "server alias cause", "server summary",
        "A Chat Server answers, but its health page says nothing usable. It counts as alive.",
    )  # fmt: skip
    SERVER_IDENTITY_CHANGED = (
        "server_identity_changed", "error", "server alias previous_alias cause", "server summary",
        "A health page speaks of another `app_dbid` than before, than configured or than was assumed.",
    )  # fmt: skip
    SERVER_IDENTITY_DISPUTED = (
        "server_identity_disputed", "error", "server alias cause advice", "server summary",
        "Several processes answer at one health address, by turns or to different nodes. A loss of any may go unseen.",
    )  # fmt: skip
    SERVER_COUNTERS_RESET = (
        "server_counters_reset", "info", "server alias cause", "server",
        "A Chat Server's counters began anew, as an option of its health service makes them. It is no restart.",
    )  # fmt: skip
    SERVER_ALIAS_ASSUMED = (
        "server_alias_assumed", "warning", "server alias sessions advice", "server summary",
        "A Chat Server that is down never told its `app_dbid`. It is taken for the one that the sessions of the only"
        " alias that is nobody else's were on, and they are restored.",
    )  # fmt: skip
    SESSIONS_UNWATCHED = (
        "sessions_unwatched", "warning", "alias sessions advice", "other summary",
        "Sessions are on a Chat Server that is not configured, or one that never told its `app_dbid`; its loss would"
        " go unnoticed.",
    )  # fmt: skip
    SELF_SUSPECTED = (
        "self_suspected", "warning", "server cause", "plant summary",
        "The trouble is probably this host's or its network's; no Chat Server is called lost for it.",
    )  # fmt: skip
    RESTORATION_STARTED = (
        "restoration_started", "warning", "restoration server alias cause sessions took_ms", "restoration summary",
        "All sessions of a lost or restarted Chat Server are due now; of a stopping one, those it named so far.",
    )  # fmt: skip
    RESTORATION_PROGRESS = (
        "restoration_progress", "info", "restoration server restored ended refused waiting rate left_s",
        "restoration",
        "How far a restoration is, and how long it will take at this rate.",
    )  # fmt: skip
    RESTORATION_FINISHED = (
        "restoration_finished", "info", "restoration server restored ended refused moved took_ms",
        "restoration summary",
        "Every session of this restoration was restored, has ended, or is taken over by a later one. Of a stopping"
        " Chat Server it is said when no notice came for 30 s; `took_ms` is without that wait.",
    )  # fmt: skip
    RESTORATION_INCOMPLETE = (
        "restoration_incomplete", "warning", "restoration server restored ended refused moved took_ms",
        "restoration summary",
        "A restoration is over and left sessions without an answer. GMS refused them again and again, and they"
        " wait for their keepalive: each has a `ping_refused`. Or the secure key that is stored cannot be read.",
    )  # fmt: skip
