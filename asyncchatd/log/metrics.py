"""What is counted, for Prometheus: `GET /metrics`. Names follow its conventions.

`docs/metrics.md` is written from here by `python -m asyncchatd.log metrics > docs/metrics.md`. No label
names a session: there are hundreds of thousands of them, and a label is a time series for ever.
What is a count or a state of the store is set when somebody asks (`refresh`), everything else where it
happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from asyncchatd.model import (
    ChatServer,
    ConsumerState,
    Failing,
    Node,
    NodeState,
    Reason,
    Restoration,
    ServerState,
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

LAG_CHECK_SECONDS = 0.02
"""How often the loop's lag is looked at: of a stall at most this much goes unseen."""

CALM_CHECK_SECONDS = 0.1
"""The same, while the loop is calm (`log/lag.py`)."""

BUILD = Info("asyncchatd_build", "Versions of asyncchatd and of Python", registry=REGISTRY)

# -- pushes ------------------------------------------------------------------------------------------

PUSHES = Counter(
    "asyncchatd_pushes",
    "Push notifications, by what they were: `known`, `resent`, `unknown`, `ended` were kept; `refused`,"
    " `wrong_secret`, `full`, `store_failed` were not",
    ["outcome"],
    registry=REGISTRY,
)
for _outcome in ("known", "resent", "unknown", "ended", "refused", "wrong_secret", "full", "store_failed"):
    PUSHES.labels(_outcome)  # a rate wants to have seen the zero
PUSH_LAST = Gauge(
    "asyncchatd_push_last_timestamp_seconds",
    "When the last push was kept, as Unix time; 0 while none came since the daemon started",
    registry=REGISTRY,
)
PUSHES_BY_SENDER = Counter(
    "asyncchatd_pushes_by_sender",
    "Push notifications that were kept, by the address they came from: that of a GMS node. At most 32; further ones"
    " are `other`, and one that is silent for an hour makes room",
    ["sender"],
    registry=REGISTRY,
)
PUSH_REFUSALS = Counter(
    "asyncchatd_push_refusals",
    "What came to the push address and was not kept, by what it failed at: `network` (not in `receiver.allow`),"
    " `forwarded`, `tls`, `proxy`, `busy`, `path`, `secret`, `method`, `body`, or the push was `not_kept`",
    ["cause"],
    registry=REGISTRY,
)
for _failing in Failing:
    PUSH_REFUSALS.labels(_failing.value)
PUSH_SECONDS = Histogram(
    "asyncchatd_push_seconds",
    "From a push's last byte to its answer",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    registry=REGISTRY,
)

# -- pings -------------------------------------------------------------------------------------------

PINGS = Counter(
    "asyncchatd_pings",
    "Ping Refreshes settled, by why the session was due and what the ping came to",
    ["reason", "outcome"],
    registry=REGISTRY,
)
PING_SECONDS = Histogram(
    "asyncchatd_ping_seconds",
    "From sending a ping Refresh to its answer",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
REQUESTS_SENT = Counter(
    "asyncchatd_requests_sent",
    "Requests sent to GMS under `restoration.max_rate`: pings by why the session was due, and `call` for what the"
    " gateway asks for chat clients. A second try at another node does not count again",
    ["reason"],
    registry=REGISTRY,
)
CALL = "call"
"""The reason of a request that a chat client waits for."""
for _word in (*(_reason.word for _reason in Reason), CALL):
    REQUESTS_SENT.labels(_word)
REFRESHES = Counter(
    "asyncchatd_refreshes",
    "Requests to GMS, by node and how they came back: `success`, `ended`, or the cause of the trouble",
    ["node", "outcome"],
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("asyncchatd_pings_in_flight", "Ping Refreshes sent and not answered", registry=REGISTRY)
IN_FLIGHT_LIMIT = Gauge(
    "asyncchatd_pings_in_flight_limit", "How many ping Refreshes may be in flight", registry=REGISTRY
)
RATE_LIMIT = Gauge(
    "asyncchatd_pings_per_second_limit", "`restoration.max_rate`: requests per second", registry=REGISTRY
)
NODE_UP = Gauge(
    "asyncchatd_gms_node_up", "1 when the GMS node is in good standing", ["node"], registry=REGISTRY
)
NODES = Gauge(
    "asyncchatd_nodes",
    "Processes that share the store, by state: `present`; `silent`, of which nobody heard for a while; `gone`, which"
    " ended without taking leave, for an hour or until one of the name comes. Not there where nobody shares the store",
    ["state"],
    registry=REGISTRY,
)
SETTINGS_DIFFERING = Gauge(
    "asyncchatd_settings_differing",
    "Settings that must be the same for all processes that share the store, and are not: `settings_differ` names them."
    " One that is silent has what it said last",
    registry=REGISTRY,
)
DATABASE_ROUND_TRIP = Gauge(
    "asyncchatd_database_round_trip_seconds",
    "Seconds of a round trip to the database that is shared, the quickest of several; 0 where none is. NaN while it is"
    " not reached",
    registry=REGISTRY,
)
DATABASE_CLOCK = Gauge(
    "asyncchatd_database_clock_ahead_seconds",
    "Seconds by which the clock of the database that is shared, by which all nodes go, is ahead of this host's."
    " NaN while it is not reached",
    registry=REGISTRY,
)
DATABASE_SNAPSHOT = Gauge(
    "asyncchatd_database_oldest_snapshot_seconds",
    "Seconds for which a transaction of the database that is shared has been open, the oldest that keeps what changed"
    " since from being cleared away. Of other users' only where this one may see them (pg_read_all_stats). NaN while it"
    " cannot be looked at",
    registry=REGISTRY,
)
GMS_UP = Gauge("asyncchatd_gms_up", "1 while any GMS node is in good standing", registry=REGISTRY)

# -- sessions ------------------------------------------------------------------------------------------

SESSIONS = Gauge("asyncchatd_sessions", "Sessions by state", ["state"], registry=REGISTRY)
DUE = Gauge("asyncchatd_sessions_due", "Live sessions that are due, by reason", ["reason"], registry=REGISTRY)
UNWATCHED = Gauge(
    "asyncchatd_sessions_unwatched",
    "Live sessions on Chat Servers that are not configured; their loss would go unnoticed",
    registry=REGISTRY,
)

REGISTRATIONS = Counter(
    "asyncchatd_registrations",
    "Registrations of sessions, by what they did: `created`, `updated`, `completed`, `kept`, `ended`, `over`,"
    " `not_taken`, `not_asked`",
    ["outcome"],
    registry=REGISTRY,
)

# -- Chat Servers and restorations -----------------------------------------------------------------------

SERVER_UP = Gauge(
    "asyncchatd_chat_server_up", "1 when the Chat Server's health page answers", ["server"], registry=REGISTRY
)
SERVER_STATE = Gauge(
    "asyncchatd_chat_server_state",
    "1 for the state the Chat Server is in: `unknown`, `up`, `suspect` or `down`",
    ["server", "state"],
    registry=REGISTRY,
)
SERVER_DISPUTED = Gauge(
    "asyncchatd_chat_server_disputed",
    "1 while several processes answer at the Chat Server's health address by turns: its loss may go unseen",
    ["server"],
    registry=REGISTRY,
)
SERVER_SESSIONS = Gauge(
    "asyncchatd_chat_server_sessions", "Live sessions on the Chat Server", ["server"], registry=REGISTRY
)
RESTORATIONS = Counter(
    "asyncchatd_restorations", "Restorations begun, by cause", ["cause"], registry=REGISTRY
)
RESTORATION_SECONDS = Histogram(
    "asyncchatd_restoration_seconds",
    "From the beginning of a restoration to the answer for its last session",
    buckets=(1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800),
    registry=REGISTRY,
)
SESSIONS_LEFT = Counter(
    "asyncchatd_sessions_left",
    "Sessions that restorations left without an answer: GMS refused them until they were left to their"
    " keepalive",
    registry=REGISTRY,
)
RESTORING = Gauge(
    "asyncchatd_restorations_running", "Restorations that have sessions waiting", registry=REGISTRY
)
RESTORING_SESSIONS = Gauge(
    "asyncchatd_restorations_waiting_sessions",
    "Sessions that wait in running restorations",
    registry=REGISTRY,
)
RESTORING_AGE = Gauge(
    "asyncchatd_restorations_oldest_seconds",
    "How long the oldest running restoration has been; 0 when none is running",
    registry=REGISTRY,
)

# -- delivery ------------------------------------------------------------------------------------------

DELIVERIES = Counter(
    "asyncchatd_deliveries",
    "Webhook requests, by consumer and outcome: `taken`, `refused`, `failed`, `gone`",
    ["consumer", "outcome"],
    registry=REGISTRY,
)
EVENTS_TOLD = Counter(
    "asyncchatd_events_told",
    "Events of chats that consumers were told, by kind and how: `delivered` by a webhook, `fetched`, `streamed`; of the"
    " last two each time counts, also of what was not acknowledged",
    ["kind", "outcome"],
    registry=REGISTRY,
)
CONSUMER_ACKNOWLEDGEMENTS = Gauge(
    "asyncchatd_consumer_acknowledgements",
    "How often the consumer was `asked` for the Refresh that acknowledges a push, how often it `acknowledged` one, and"
    " how often its time `ran_out` and asyncchatd pinged; since it was named first, over restarts",
    ["consumer", "outcome"],
    registry=REGISTRY,
)
EVENTS_DROPPED = Counter(
    "asyncchatd_events_dropped",
    "Events that a consumer is told no more, by consumer and cause: `keep`, `max_backlog`, `bounds`",
    ["consumer", "cause"],
    registry=REGISTRY,
)

CONSUMER_LAG = Gauge(
    "asyncchatd_consumer_lag_seconds",
    "For how long the oldest event has waited that the consumer has not acknowledged; 0 when there is none",
    ["consumer"],
    registry=REGISTRY,
)
CONSUMER_BEHIND = Gauge(
    "asyncchatd_consumer_behind",
    "Events that the consumer has not acknowledged, of those that it is told; about how many, when there are many",
    ["consumer"],
    registry=REGISTRY,
)
CONSUMER_PARKED = Gauge(
    "asyncchatd_consumer_parked",
    "Batches that the consumer's webhook refused for so long that nobody tries them any more until they are replayed",
    ["consumer"],
    registry=REGISTRY,
)
CONSUMER_PAUSED = Gauge(
    "asyncchatd_consumer_paused",
    "1 while the consumer is told nothing, as it is paused",
    ["consumer"],
    registry=REGISTRY,
)
TRANSCRIPT_EVENTS = Gauge(
    "asyncchatd_transcript_events",
    "Events of chats that are kept, guessed where they are many",
    registry=REGISTRY,
)
TRANSCRIPT_BYTES = Gauge(
    "asyncchatd_transcript_bytes",
    "Size of the events that are kept, guessed where they are many",
    registry=REGISTRY,
)

# -- the gateway -----------------------------------------------------------------------------------------

POLLS = Counter(
    "asyncchatd_gateway_polls",
    "Polls of chat clients, by what they were answered with: `news`, `empty`, or that the chat has `ended`",
    ["answer"],
    registry=REGISTRY,
)
POLLS_HELD = Gauge(
    "asyncchatd_gateway_polls_held", "Polls of chat clients that wait for news", registry=REGISTRY
)
STREAMS_OPEN = Gauge(
    "asyncchatd_gateway_streams", "Streams of events that chat clients have open", registry=REGISTRY
)
CALLS = Counter(
    "asyncchatd_gateway_calls",
    "Calls of chat clients, by operation and by what became of them. `unknown`: nobody can know, and the client may"
    " have sent it again",
    ["operation", "outcome"],
    registry=REGISTRY,
)
CHATS_OPENED = Counter(
    "asyncchatd_gateway_chats_opened",
    "Chats that clients asked for, by what became of them. `orphaned`: the reply was lost, so there may be a chat that"
    " nobody knows. `adopted`, `not_adopted`: one that was begun without the gateway",
    ["outcome"],
    registry=REGISTRY,
)
GATEWAY_KEYS = Counter(
    "asyncchatd_gateway_keys",
    "Requests of chat clients by the key they came with: one made with the `newest` key of the gateway, with an `older`"
    " one, that of GMS which the client `came_with`, or `wrong`",
    ["key"],
    registry=REGISTRY,
)
LOOKS = Counter(
    "asyncchatd_gateway_looks",
    "Times that GMS was asked about a chat that is polled, in case its pushes have stopped; `missed`: it showed an"
    " event that no push had announced",
    ["outcome"],
    registry=REGISTRY,
)
for _outcome in ("asked", "missed"):
    LOOKS.labels(_outcome)
PUSHES_MISSING = Gauge(
    "asyncchatd_gateway_pushes_missing",
    "1 while so many pushes are missing that GMS is asked about all chats that are polled",
    registry=REGISTRY,
)
CHATS_WITHOUT_PUSHES = Gauge(
    "asyncchatd_gateway_chats_without_pushes",
    "Chats whose pushes do not come: GMS is asked about them every `gateway.fallback_interval`",
    registry=REGISTRY,
)
GATEWAY_CHATS = Gauge(
    "asyncchatd_gateway_chats",
    "Live sessions of chats that the gateway opened: it cannot be taken out while there are any",
    registry=REGISTRY,
)
CHATS_WATCHED = Gauge(
    "asyncchatd_gateway_chats_watched",
    "Chats whose newest events are in memory, because a client looks at them",
    registry=REGISTRY,
)
CHATS_WATCHED_BYTES = Gauge(
    "asyncchatd_gateway_chats_watched_bytes", "Memory that these events take, about", registry=REGISTRY
)

# -- the configuration and its files ------------------------------------------------------------------------

RELOAD_SUCCESSFUL = Gauge(
    "asyncchatd_config_last_reload_successful",
    "1 while the configuration file, as it was last read, is in force; 0 once a reload was refused",
    registry=REGISTRY,
)
RELOAD_SUCCESS_AT = Gauge(
    "asyncchatd_config_last_reload_success_timestamp_seconds",
    "When the configuration in force was taken over, by the start or a reload",
    registry=REGISTRY,
)
CERTIFICATE_END = Gauge(
    "asyncchatd_certificate_not_after_timestamp_seconds",
    "When the certificate in use runs out that this key of the configuration names, or the first of its chain",
    ["key"],
    registry=REGISTRY,
)

# -- the daemon itself -----------------------------------------------------------------------------------

LOOP_LAG = Histogram(
    "asyncchatd_loop_lag_seconds",
    f"How late the event loop was, looked at every {LAG_CHECK_SECONDS * 1000:.0f} ms; every"
    f" {CALM_CHECK_SECONDS * 1000:.0f} ms while it is calm",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    registry=REGISTRY,
)
LOOP_LAG_MAX = Gauge(
    "asyncchatd_loop_lag_max_seconds",
    "The most the event loop has been late since the daemon started",
    registry=REGISTRY,
)
COMMIT_SECONDS = Histogram(
    "asyncchatd_store_commit_seconds",
    "From handing a group of transactions to the disk to their commit",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
    registry=REGISTRY,
)
STORE_WRITABLE = Gauge(
    "asyncchatd_store_writable",
    "0 while nothing can be written: pushes are refused then and no session is pinged",
    registry=REGISTRY,
)
STORE_REPLACED = Gauge(
    "asyncchatd_store_replaced",
    "1 while the store is not the one of before, but an empty, older or another one, and nobody has accepted that",
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge(
    "asyncchatd_store_queue_depth", "Transactions and pushes that wait for the disk", registry=REGISTRY
)
STORE_LOG_BYTES = Gauge(
    "asyncchatd_store_log_bytes",
    "Size of the database's write-ahead log; it grows while another program reads the database",
    registry=REGISTRY,
)
LOG_EVENTS = Counter(
    "asyncchatd_log_events",
    "Warnings and errors, by the event's name in log-events.md; those of a level that is not logged are"
    " not counted",
    ["event", "level"],
    registry=REGISTRY,
)
LOG_LINES_LOST = Counter(
    "asyncchatd_log_lines_lost",
    "Lines of the log that were dropped because nobody read them in time, or its disk was full",
    registry=REGISTRY,
)


def forget(servers: Iterable[ChatServer]) -> None:
    """Set what is known of Chat Servers, and let go of what only the store knows: it cannot be read now. An old count
    would be taken for a new one."""
    _show_servers(servers)
    for by_label in (SESSIONS, DUE, SERVER_SESSIONS, NODES, *_OF_CONSUMERS):
        by_label.clear()
    for single in (
        UNWATCHED,
        GATEWAY_CHATS,
        RESTORING,
        RESTORING_SESSIONS,
        RESTORING_AGE,
        TRANSCRIPT_EVENTS,
        TRANSCRIPT_BYTES,
    ):
        single.set(math.nan)


_OF_CONSUMERS = (
    CONSUMER_LAG,
    CONSUMER_BEHIND,
    CONSUMER_PARKED,
    CONSUMER_PAUSED,
    CONSUMER_ACKNOWLEDGEMENTS,
)


def refresh_consumers(consumers: Iterable[ConsumerState], *, events: int, size: int, now: float) -> None:
    """Set how far consumers are, and how much is kept for them. `now` in ms, `size` in bytes."""
    for gauge in _OF_CONSUMERS:
        gauge.clear()  # a reload may have taken some away
    for each in consumers:
        waits = 0.0 if each.oldest_at is None else max(0.0, now - each.oldest_at) / 1000
        CONSUMER_LAG.labels(each.name).set(waits)
        CONSUMER_BEHIND.labels(each.name).set(each.behind)
        CONSUMER_PARKED.labels(each.name).set(each.parked)
        CONSUMER_PAUSED.labels(each.name).set(each.paused)
        if each.acknowledges or each.asked:
            for outcome in ("asked", "acknowledged", "ran_out"):
                CONSUMER_ACKNOWLEDGEMENTS.labels(each.name, outcome).set(getattr(each, outcome))
    TRANSCRIPT_EVENTS.set(events)
    TRANSCRIPT_BYTES.set(size)


def refresh_nodes(nodes: Iterable[Node] | None) -> None:
    """Set how many processes share the store; `None`: nobody shares it."""
    if nodes is not None:
        states = [node.state for node in nodes]
        for state in NodeState:
            NODES.labels(state.value).set(states.count(state))


def refresh(
    *,
    servers: Iterable[ChatServer],
    by_alias: Mapping[str, int],
    running: Iterable[Restoration],
    now: float,
) -> None:
    """Set what is a state of the world: Chat Servers, their sessions, restorations. `now` in ms."""
    left = dict(by_alias)
    shown = _show_servers(servers)
    SERVER_SESSIONS.clear()
    for server in shown:
        SERVER_SESSIONS.labels(server.name).set(left.pop(server.app_dbid or "", 0))
    UNWATCHED.set(sum(left.values()))
    waiting = [each for each in running if each.waiting]
    RESTORING.set(len(waiting))
    RESTORING_SESSIONS.set(sum(each.waiting for each in waiting))
    RESTORING_AGE.set(max(((now - each.started_at) / 1000 for each in waiting), default=0.0))


def _show_servers(servers: Iterable[ChatServer]) -> list[ChatServer]:
    shown = list(servers)
    SERVER_STATE.clear()  # a reload may have taken some away
    SERVER_DISPUTED.clear()
    for server in shown:
        for state in ServerState:
            SERVER_STATE.labels(server.name, state.value).set(state is server.state)
        SERVER_DISPUTED.labels(server.name).set(server.disputed is not None)
    return shown


OURS: tuple[Counter | Gauge | Histogram | Info, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, (Counter, Gauge, Histogram, Info))
)
