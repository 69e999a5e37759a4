-- What asyncchatd 0.1.0 left on disk (schema 3), as SQL: chats of every state, one of them with a push that had not taken
-- effect, one whose ping was under way, and a restoration that was. Secure keys are encrypted with the bytes 0 to 31.
PRAGMA application_id = 1633896772;
PRAGMA user_version = 3;
BEGIN TRANSACTION;
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
INSERT INTO "journal" VALUES(1,1700000012001,3,'in-journal','device-of-in-journal',NULL,NULL,NULL,NULL,NULL,NULL,0,0,'body-2');
CREATE TABLE lease (
        session INTEGER PRIMARY KEY,
        claim   INTEGER NOT NULL,
        until   INTEGER NOT NULL
    );
INSERT INTO "lease" VALUES(4,6364780737885473,1700000027001);
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
    , told INTEGER NOT NULL DEFAULT 0);
INSERT INTO "restoration" VALUES(1,'118','chat','unreachable',1700000011000,0,1700000011000,1700000007000,6,3,1,0,0,0,NULL,0);
CREATE TABLE sealing (
        key_id  TEXT,
        remains INTEGER NOT NULL
    );
INSERT INTO "sealing" VALUES('946c88598c545bf0',0);
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
INSERT INTO "server" VALUES('chat-a','118','7',NULL,'down',1700000011000,1700000011000,'connection refused');
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
INSERT INTO "session" VALUES(1,'answered','support','user-of-answered','BJ2fOecnBy7H4zRUvkIRi+jpLjaGupZ8cj+8Op89D6Le','117','device-of-answered',3,1,3,1700001811000.0,2,0,NULL,1700000001000,1700000001000,1700000010000,1700000011000,0,NULL,NULL,NULL,NULL,1700000011000,'d2ce8cd6f133',NULL);
INSERT INTO "session" VALUES(2,'pushed','support','user-of-pushed','GcwZC6JnkyqPb5UyPY2uHy5sB7Bnd7ObjKiAXYY=','117','device-of-pushed',3,1,0,1700000012001.0,2,0,NULL,1700000002000,1700000012001,1700000005000,1700000006000,0,NULL,NULL,NULL,NULL,0,'','body-1');
INSERT INTO "session" VALUES(3,'in-journal','support','user-of-in-journal','0Q9WhJRZ9JcuNXZraT5Yt6iV25oN0RR/e/z2tsgOMEuE','117','device-of-in-journal',3,1,3,1700001806000.0,1,0,NULL,1700000003000,1700000003000,1700000005000,1700000006000,0,NULL,NULL,NULL,NULL,0,'',NULL);
INSERT INTO "session" VALUES(4,'in-flight','support','user-of-in-flight','WjzsDcMWgbytW0/ErM6FEnRhmcbYP3THgEgCL1OajtM=','117','device-of-in-flight',3,1,2,1700000012001.0,2,0,NULL,1700000004000,1700000004000,1700000005000,1700000006000,0,NULL,NULL,NULL,NULL,0,'',NULL);
INSERT INTO "session" VALUES(5,'over','support','user-of-over',NULL,'117','device-of-over',3,2,3,1700001806000.0,1,0,NULL,1700000005000,1700000011000,1700000005000,1700000006000,0,1700000011000,'removed',NULL,NULL,0,'',NULL);
INSERT INTO "session" VALUES(6,'lost-1','support','user-of-lost-1','QnqoWBXBSBSLNCj9D8bq3O8m5rMltPLEaaijUW4=','118','device-of-lost-1',3,1,1,1.70000001100000195305e+12,2,0,1,1700000007000,1700000007000,1700000009000,1700000010000,0,NULL,NULL,NULL,NULL,0,'',NULL);
INSERT INTO "session" VALUES(7,'lost-2','support','user-of-lost-2','kVLC4gQLde5xQoxZspiI9t3SyikXfLJkWpFN1HU=','118','device-of-lost-2',3,1,1,1.70000001100000097654e+12,2,0,1,1700000008000,1700000008000,1700000009000,1700000010000,0,NULL,NULL,NULL,NULL,0,'',NULL);
INSERT INTO "session" VALUES(8,'lost-3','support','user-of-lost-3','gj1K/WiuDFWPmnMCL4jlFpgO7M0UvOjDz+6dvmQ=','118','device-of-lost-3',3,1,3,1700001812001.0,2,0,NULL,1700000009000,1700000009000,1700000011001,1700000012001,0,NULL,NULL,NULL,NULL,0,'',NULL);
INSERT INTO "session" VALUES(9,'half',NULL,NULL,NULL,NULL,'device-of-half',NULL,0,0,1700000011000.0,0,0,NULL,1700000011000,1700000011000,0,NULL,0,NULL,NULL,NULL,NULL,0,'','body-0');
CREATE INDEX session_due ON session (reason, due_at) WHERE state = 1;
CREATE INDEX session_alias ON session (alias, active_at) WHERE state = 1;
CREATE INDEX session_device ON session (device_id) WHERE device_id IS NOT NULL;
CREATE INDEX session_over ON session (state, active_at) WHERE state <> 1;
CREATE INDEX restoration_alias ON restoration (alias, started_at);
CREATE INDEX restoration_open ON restoration (id) WHERE finished_at IS NULL;
CREATE INDEX restoration_untold ON restoration (id) WHERE finished_at IS NOT NULL AND told=0;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('restoration',1);
COMMIT;
