"""The schema of the SQLite store, as numbered migrations.

`user_version` counts the migrations a file has seen, `application_id` marks it as ours: a file of
another program, or one written by a newer asyncchatd, is refused and left alone. A migration only adds: what an older
asyncchatd has written down stays what it was.
"""

from __future__ import annotations

import re
import sqlite3

from asyncchatd.stores.errors import StoreError

APPLICATION_ID = 0x61634944

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE session (
        id            INTEGER PRIMARY KEY,
        chat_id       TEXT UNIQUE,
        service       TEXT,
        user_id       TEXT,
        secure_key    TEXT,
        alias         TEXT,
        device_id     TEXT,
        next_position INTEGER,
        state         INTEGER NOT NULL,
        reason        INTEGER NOT NULL,
        due_at        REAL NOT NULL,
        marks         INTEGER NOT NULL DEFAULT 0,
        attempts      INTEGER NOT NULL DEFAULT 0,
        restoration   INTEGER,
        registered_at INTEGER NOT NULL,
        active_at     INTEGER NOT NULL,
        sent_at       INTEGER NOT NULL DEFAULT 0,
        answered_at   INTEGER,
        seen_utc      INTEGER NOT NULL DEFAULT 0,
        ended_at      INTEGER,
        end_cause     TEXT,
        last_trouble  TEXT,
        told_position INTEGER,
        renewed_at    INTEGER NOT NULL DEFAULT 0,
        old_keys      TEXT NOT NULL DEFAULT '',
        push_digest   TEXT
    );
    -- What is due: one range scan per reason finds it, however many sessions there are.
    CREATE INDEX session_due ON session (reason, due_at) WHERE state = 1;
    -- The sessions of a lost Chat Server, most recently active first.
    CREATE INDEX session_alias ON session (alias, active_at) WHERE state = 1;
    CREATE INDEX session_device ON session (device_id) WHERE device_id IS NOT NULL;
    CREATE INDEX session_over ON session (state, active_at) WHERE state <> 1;

    -- Sessions a worker has now. Apart from their rows, because a claim would otherwise write as many
    -- pages as it takes sessions; this table stays small.
    CREATE TABLE lease (
        session INTEGER PRIMARY KEY,
        claim   INTEGER NOT NULL,
        until   INTEGER NOT NULL
    );

    -- Pushes that are durable and have not taken effect yet. Narrow and append-only: a commit
    -- writes one or two pages here, where updating the session rows would write several each.
    CREATE TABLE journal (
        id         INTEGER PRIMARY KEY,
        at         INTEGER NOT NULL,
        session    INTEGER,
        chat_id    TEXT,
        device_id  TEXT,
        user_id    TEXT,
        secure_key TEXT,
        alias      TEXT,
        utc_time   INTEGER,
        position   INTEGER,
        next_position INTEGER,
        leaving    INTEGER NOT NULL,
        resent     INTEGER NOT NULL,
        digest     TEXT NOT NULL
    );

    CREATE TABLE server (
        name           TEXT PRIMARY KEY,
        app_dbid       TEXT,
        process_os_pid TEXT,
        started        REAL,
        state          TEXT NOT NULL,
        since          INTEGER NOT NULL,
        checked_at     INTEGER NOT NULL,
        detail         TEXT
    );

    CREATE TABLE restoration (
        id            INTEGER PRIMARY KEY AUTOINCREMENT,
        alias         TEXT NOT NULL,
        server        TEXT,
        cause         TEXT NOT NULL,
        started_at    INTEGER NOT NULL,
        marking       INTEGER NOT NULL,
        marked_at     INTEGER NOT NULL,
        cursor_active INTEGER,
        cursor_id     INTEGER,
        sessions      INTEGER NOT NULL DEFAULT 0,
        restored      INTEGER NOT NULL DEFAULT 0,
        ended         INTEGER NOT NULL DEFAULT 0,
        refused       INTEGER NOT NULL DEFAULT 0,
        moved         INTEGER NOT NULL DEFAULT 0,
        finished_at   INTEGER
    );
    CREATE INDEX restoration_alias ON restoration (alias, started_at);
    CREATE INDEX restoration_open ON restoration (id) WHERE finished_at IS NULL;
    """,
    """
    -- The one row says under which store key all secure keys are sealed (NULL: none), and whether what
    -- stood there before may still be found in the file.
    CREATE TABLE sealing (
        key_id  TEXT,
        remains INTEGER NOT NULL
    );
    INSERT INTO sealing VALUES (NULL, 0);
    """,
    """
    -- Whether the log has told of a restoration's end.
    ALTER TABLE restoration ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
    UPDATE restoration SET told=1 WHERE finished_at IS NOT NULL;
    CREATE INDEX restoration_untold ON restoration (id) WHERE finished_at IS NOT NULL AND told=0;
    """,
    """
    -- Which processes answered at a Chat Server's address, and how often something was noted of it.
    ALTER TABLE server ADD COLUMN began REAL;
    ALTER TABLE server ADD COLUMN first_seen INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE server ADD COLUMN last_seen INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE server ADD COLUMN disputed INTEGER;
    ALTER TABLE server ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE server ADD COLUMN others TEXT NOT NULL DEFAULT '[]';
    -- It was the stated start time, or computed from the uptime: nobody can tell which any more.
    UPDATE server SET started=NULL;
    """,
    """
    -- What GMS said with the last trouble. Since when it refuses the session, and how often it did since then;
    -- `refusals` counts only while `refused_since` is set.
    ALTER TABLE session ADD COLUMN trouble_detail TEXT;
    ALTER TABLE session ADD COLUMN refused_since INTEGER;
    ALTER TABLE session ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- Each ping of a session stands for the time until the next (`stores.base.SPACING_MS`); until when those
    -- that there were stand for it.
    ALTER TABLE session ADD COLUMN pinged_until INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- Of this file itself. `mark` grows with each checkpoint; `at_work` says that what is missing here may
    -- stand in the log; `copied_at` is set in a backup, to the time (ms) of which it is.
    CREATE TABLE file (
        mark      BLOB NOT NULL,
        at_work   INTEGER NOT NULL,
        copied_at INTEGER
    );
    INSERT INTO file VALUES (x'', 0, NULL);
    """,
    """
    -- One made of shutdown notices may be finished and open for further notices.
    DROP INDEX restoration_open;
    CREATE INDEX restoration_open ON restoration (id) WHERE finished_at IS NULL OR marking=1;
    """,
    """
    -- Whether a Chat Server's app_dbid is assumed, as it never told it.
    ALTER TABLE server ADD COLUMN assumed INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- What consumers are told, in one order over all chats; of each chat in that of its transcript. Chat Server may
    -- count a session's events anew: `numbering` says which count an index belongs to. `idx` and `likeness` are those
    -- of chat events alone.
    CREATE TABLE event (
        id        INTEGER PRIMARY KEY AUTOINCREMENT,
        session   INTEGER NOT NULL,
        numbering INTEGER NOT NULL,
        idx       INTEGER,
        kind      TEXT NOT NULL,
        at        INTEGER NOT NULL,
        likeness  BLOB,
        body      BLOB
    );
    CREATE UNIQUE INDEX event_of_session ON event (session, numbering, idx);
    ALTER TABLE session ADD COLUMN numbering INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE session ADD COLUMN numbered_at INTEGER NOT NULL DEFAULT 0;

    -- Who is told. `cursor`: everything up to that id is acknowledged, or with a webhook shared out over `delivery`;
    -- `given`: the highest id that was ever given out. `keep_ms`: so long it is remembered once it is gone.
    CREATE TABLE consumer (
        name      TEXT PRIMARY KEY,
        cursor    INTEGER NOT NULL,
        given     INTEGER NOT NULL,
        paused    INTEGER NOT NULL DEFAULT 0,
        gone_at   INTEGER,
        moved_at  INTEGER NOT NULL,
        keep_ms   INTEGER NOT NULL
    );
    -- The chats of which a webhook has not been told everything: from event `first` on. `batch`: what was tried last
    -- is tried again as it was, up to event `until`. `own`: how far the chat itself is, one for each; the others are
    -- batches that were put aside, so that the chat goes on behind them. `parked` until it is replayed.
    CREATE TABLE delivery (
        consumer  TEXT NOT NULL,
        session   INTEGER NOT NULL,
        first     INTEGER NOT NULL,
        until     INTEGER,
        batch     TEXT,
        tries     INTEGER NOT NULL DEFAULT 0,
        failing   INTEGER,
        due_at    INTEGER NOT NULL DEFAULT 0,
        own       INTEGER NOT NULL DEFAULT 1,
        parked    INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (consumer, session, first)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX delivery_own ON delivery (consumer, session) WHERE own=1;
    CREATE INDEX delivery_due ON delivery (consumer, parked, due_at);
    CREATE INDEX delivery_oldest ON delivery (consumer, parked, first, due_at);
    CREATE INDEX delivery_session ON delivery (session);

    -- Names this history of ids: a file that is begun anew, or put back from a copy, has another one.
    ALTER TABLE file ADD COLUMN epoch TEXT NOT NULL DEFAULT '';
    UPDATE file SET epoch=lower(hex(randomblob(4)));
    -- Up to which event, and which end of a chat, the bounds of transcripts were looked after.
    ALTER TABLE file ADD COLUMN trimmed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE file ADD COLUMN ended_looked INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- The last take of a session. While it lasts, the session has a lease with the claim 0. What was handed out with it
    -- (the key as its digest) stays, as the registration may come late. `over`: by a registration or a release.
    -- `pinged_until` of the session as it was: it has grown once a ping came. `told`: the log has told that it ran out.
    CREATE TABLE take (
        session      INTEGER PRIMARY KEY,
        take_id      TEXT NOT NULL,
        at           INTEGER NOT NULL,
        until        INTEGER NOT NULL,
        key_digest   TEXT NOT NULL,
        user_id      TEXT NOT NULL,
        alias        TEXT NOT NULL,
        pinged_until INTEGER NOT NULL,
        over         INTEGER NOT NULL DEFAULT 0,
        told         INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX take_open ON take (until) WHERE over=0 AND told=0;
    """,
    """
    -- The events of one chat in their order: without it each batch of a long chat reads all of it.
    CREATE INDEX event_in_order ON event (session, id);
    """,
    """
    -- Refreshes that a consumer is to send for a push: the event that tells it, and when its time is over. `given_at`:
    -- since when he knows; from then on the session has a lease with the claim 0, and what it had then (the key as its
    -- digest) stays, as the registration may come late. `marks` of the session as the push left them: grown, it is due
    -- for something else too. `outcome`: 0 open, 1 acknowledged, 2 its time was over, 3 withdrawn. `told`: by the log.
    CREATE TABLE ask (
        session    INTEGER NOT NULL,
        event      INTEGER NOT NULL,
        consumer   TEXT NOT NULL,
        at         INTEGER NOT NULL,
        until      INTEGER NOT NULL,
        marks      INTEGER NOT NULL,
        given_at   INTEGER,
        key_digest TEXT,
        user_id    TEXT,
        alias      TEXT,
        outcome    INTEGER NOT NULL DEFAULT 0,
        told       INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (session, event)
    ) WITHOUT ROWID;
    CREATE INDEX ask_open ON ask (until) WHERE outcome=0;
    CREATE INDEX ask_untold ON ask (session) WHERE outcome=2 AND told=0;
    ALTER TABLE consumer ADD COLUMN asked INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE consumer ADD COLUMN acknowledged INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE consumer ADD COLUMN ran_out INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- A gap that is told to one consumer alone. One of session 0 is of all chats.
    ALTER TABLE event ADD COLUMN consumer TEXT;
    CREATE INDEX event_to_one ON event (consumer, session, id) WHERE consumer IS NOT NULL;
    -- What a consumer is told, also while it is gone: lists in JSON, an empty one of services is all. `missed_at`:
    -- since when not all of it is written, as it is gone and nobody else is told of it.
    ALTER TABLE consumer ADD COLUMN kinds TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE consumer ADD COLUMN services TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE consumer ADD COLUMN max_backlog INTEGER;
    ALTER TABLE consumer ADD COLUMN missed_at INTEGER;
    -- How far this round through the chats that ended has come; `ended_looked` is where it began.
    ALTER TABLE file ADD COLUMN ended_at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE file ADD COLUMN ended_row INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE file ADD COLUMN ended_kept INTEGER;
    -- The gap with which this epoch began, until it is known who is told of it.
    ALTER TABLE file ADD COLUMN gap INTEGER;
    """,
    """
    -- Whether the gateway opened the chat. Nobody is asked to acknowledge its pushes.
    ALTER TABLE session ADD COLUMN of_gateway INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- A digest of the key that a session's client came with, made with a key of the gateway; NULL where there is none.
    ALTER TABLE session ADD COLUMN came_with TEXT;
    """,
    """
    -- The ids of the keys that the gateway made clients' keys with, the newest first, with blanks between.
    ALTER TABLE file ADD COLUMN gateway_keys TEXT NOT NULL DEFAULT '';
    """,
    """
    -- The chats that the gateway opened, to count them: it cannot be taken out while there is one.
    CREATE INDEX session_of_gateway ON session (id) WHERE state = 1 AND of_gateway = 1;
    """,
    """
    -- Where all of it was copied, and is used from then on: this file is not.
    ALTER TABLE file ADD COLUMN moved TEXT;
    """,
)

ADDED = frozenset(re.findall(r"ALTER TABLE \w+ ADD COLUMN (\w+)", "".join(MIGRATIONS)))
"""Columns that migrations added. SQLite leaves the rows of before as they were, without them."""


def migrate(connection: sqlite3.Connection, name: str) -> int:
    """Bring the file up to date; how many migrations ran. Raises `StoreError` for a file that is
    not ours to change."""
    version = check_ours(connection, name)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA application_id = {APPLICATION_ID};"
            f" PRAGMA user_version = {number}; COMMIT;"
        )
    return len(MIGRATIONS) - version


def check_ours(connection: sqlite3.Connection, name: str) -> int:
    """The file's version, 0 for a new one. Only reads. Raises `StoreError` for a file that is not ours
    to change."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise StoreError(f"{name} is an SQLite file of another program; name another file in store.url")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{name} was written by a newer asyncchatd (schema {version}, this one knows"
            f" {len(MIGRATIONS)}); install that one again, or go back as docs/upgrading.md says"
        )
    return version
