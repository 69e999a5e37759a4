"""Stories told from logs: what an operator reads at 3 a.m., and that no event of the catalogue is left out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from conftest import case

from asyncchatd.gms import Trouble
from asyncchatd.log.events import Event, Trait
from asyncchatd.log.fields import FIELDS
from asyncchatd.model import data as model
from asyncchatd.story.chat import ChatStory
from asyncchatd.story.narrator import dated
from asyncchatd.story.phrases import told_by_push
from asyncchatd.story.read import Line
from asyncchatd.story.sentences import COUNTED, SENTENCES, sentence
from asyncchatd.story.show import StoryLines, moment, narrate
from asyncchatd.story.summary import Summary
from asyncchatd.story.whole import PlantStory
from asyncchatd.story.words import CAUSES, Said
from asyncchatd.wire import chat_api

from .rig import CHAT, START, Log


def test_a_disk_that_was_full_is_why_a_chat_waited(log: Log) -> None:
    log(60, "store_unwritable", store="/x.db", cause="database or disk is full (SQLITE_FULL)")
    log(70, "server_down", server="chat-1", alias="117", cause="connection refused", attempts=3)
    log(300, "store_writable", store="/x.db", outage_ms=240_000)
    log.chat(310, "ping_ok", alias="117", reason="restore", attempt=1, waited_ms=240_000, took_ms=8)
    verdict = log.verdict()
    assert "the store could not be written, so nothing was pinged, from" in verdict
    assert "the log shows no trouble" not in verdict


def test_a_summary_counts_chats_and_not_their_registrations(log: Log) -> None:
    """Logs of before say only how many registrations there were."""
    summary = Summary()
    log(1, "sessions_registered", count=20, created=20, refused=0)
    log(2, "sessions_registered", count=20, created=0, refused=0)
    log(3, "sessions_registered", count=7, refused=0)
    log.chat(4, "session_registered", alias="117", service="s", outcome="created")
    log.chat(5, "session_registered", alias="117", service="s", outcome="updated")
    for line in log.lines:
        summary.hear(line)
    shown = summary.shown(log.lines[0].time, log.lines[-1].time, len(log.lines), 0)
    assert (shown["registered"], shown["begun"]) == (29, 0), "with the one before"


def test_a_summary_counts_the_chats_that_clients_began(log: Log) -> None:
    summary = Summary()
    log.chat(1, "chat_opened", alias="117", service="support", node="http://gms-1", took_ms=5)
    log.chat(2, "chat_adopted", alias="117", service="support", node="http://gms-1")
    for line in log.lines:
        summary.hear(line)
    told = (log.lines[0].time, log.lines[-1].time, len(log.lines), 0)
    assert summary.shown(*told)["begun"] == 2
    assert "1 registered, 2 begun by clients, 0 over" in "\n".join(summary.text(*told))


def test_a_stop_at_the_end_of_the_log_is_no_absence(log: Log) -> None:
    log(60, "daemon_stopping", cause="asked to", in_flight=0)
    log(62, "daemon_stopped", took_ms=2000, in_flight=0)
    shown, text = summed(log)
    assert (shown["daemon_absent_seconds"], shown["daemon_stopped_at"]) == (0.0, log.lines[-2].time)
    assert "was not running" not in text
    assert f"{dated(START + timedelta(seconds=60))}, and not started again in what was read" in text
    log(80, "daemon_starting", version="1.0", pid=8)
    log(81, "daemon_ready", took_ms=900, sessions=3, servers=1)
    shown, text = summed(log)
    assert (shown["daemon_absent_seconds"], shown["daemon_stopped_at"]) == (21.0, None)
    assert "asyncchatd was not running: 1 time, 21 s" in text
    assert "not started again" not in text


def summed(log: Log) -> tuple[dict[str, object], str]:
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    told = (log.lines[0].time, log.lines[-1].time, len(log.lines), 0)
    return summary.shown(*told), "\n".join(summary.text(*told))


def test_a_summary_tells_what_happened_to_one_chat_and_needs_somebody(log: Log) -> None:
    summary = Summary()
    log.chat(1, "events_parked", consumer="app", count=3, tries=9, cause="HTTP 400", advice="mend it")
    for line in log.lines:
        summary.hear(line)
    text = "\n".join(summary.text(log.lines[0].time, log.lines[-1].time, 1, 0))
    assert "Consumer app refused 3 events for so long that they are put aside: HTTP 400" in text


def test_a_summary_tells_that_the_disk_was_full_and_is_not_any_more(log: Log) -> None:
    log(60, "store_unwritable", store="/x.db", cause="database or disk is full (SQLITE_FULL)")
    log(300, "store_writable", store="/x.db", outage_ms=240_000)
    log(310, "config_reloaded", config="/x.toml", changed=["ping.interval"])
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    shown = summary.shown(log.lines[0].time, log.lines[-1].time, len(log.lines), 0)
    assert shown["store_unwritable_seconds"] == 240.0
    happened = shown["happened"]
    assert isinstance(happened, list)
    assert len(happened) == 4, "the start, the disk full, the disk written again, the reload"


# Sentences.


@pytest.mark.parametrize("value", ["something", 4711, None, True, ["a", "b"]])
def test_every_event_of_the_catalogue_is_told_whatever_its_fields_hold(value: object) -> None:
    for event in Event:
        with case(event):
            fields = {name: value for name in event.fields if value is not None}
            said = sentence(Line(START, event.level, event, fields), {})
            assert said[0].isupper() or said.startswith("asyncchatd")
            assert event.value not in said, "a sentence, not the name of the event"
            assert "{" not in said
            assert "  " not in said


def test_there_is_no_sentence_for_what_is_not_in_the_catalogue() -> None:
    assert set(SENTENCES) <= set(Event)
    assert {name for event in Event for name in event.fields} == set(FIELDS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"copy": "/x.db"}, "; what it was is kept as /x.db"),
        ({"cause": "no room"}, ", without a copy of what it was: no room"),
        ({"copy": "/x.db", "cause": "row 7"}, "; what it was is kept as /x.db, damaged: row 7"),
    ],
)
def test_an_upgrade_says_of_the_copy_only_what_is_so(fields: dict[str, object], words: str) -> None:
    said = sentence(Line(START, "warning", Event.STORE_UPGRADED, fields), {})
    assert said == f"The database of an older asyncchatd was brought up to date{words}"


def test_the_address_of_the_metrics_is_called_that() -> None:
    for listener, name in {"receiver": "receiver", "metrics": "address of the metrics"}.items():
        said = sentence(Line(START, "info", Event.TLS_RENEWED, {"listener": listener}), {})
        assert said == f"The {name} shows its new certificate from now on"


def test_an_event_without_a_sentence_is_told_by_what_the_catalogue_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(SENTENCES, Event.LOOP_STALLED)
    said = sentence(Line(START, "warning", Event.LOOP_STALLED, {"stall_ms": 700}), {})
    assert said.startswith("The daemon itself stood still for so long")
    assert said.endswith("(stall ms 700)")


def test_every_cause_there_is_has_words() -> None:
    assert {*chat_api.PingFault, *model.Cause, *Trouble} <= set(CAUSES)


def test_an_event_of_a_later_version_is_told_as_it_is() -> None:
    line = Line(START, "info", "server_moved", {"server": "chat-1", "to": "rack 7"})
    assert sentence(line, {}) == "server moved (server chat-1, to rack 7)"
    lists = {
        "servers": ["chat-1", "chat-2"],
        "by_cause": {"timeout": 3, "tls": 1},
        "again": True,
        "at": None,
        "of": [],
    }
    assert sentence(Line(START, "info", "servers_moved", lists), {}) == (
        "servers moved (servers chat-1, chat-2; by cause timeout 3, tls 1; again yes)"
    )
    assert Said({"chats": [["A1", 2], {"id": "B2"}], "last": False}, {}).text("chats") == "A1, 2, id B2"
    assert sentence(Line(None, "", "", {"message": "Segmentation fault"}), {}) == (
        "another program said: Segmentation fault"
    )


# One chat.


def test_an_acknowledged_push_is_one_sentence(log: Log) -> None:
    log.chat(10, "push_received", type="Message", sender="Agent", known="known", reason="acknowledge")
    log.chat(10.03, "ping_ok", alias="117", reason="acknowledge", attempt=1, waited_ms=30, took_ms=5)
    assert log.story()[-1] == "GMS pushed a message from an agent (acknowledged 0.03 s later)"
    assert "Still alive at the end of the log" in log.verdict()
    assert "It is on chat-1 (alias 117)." in log.verdict()


def test_many_smooth_pushes_are_drawn_together_unless_all_is_asked_for(log: Log) -> None:
    for number in range(10):
        log.chat(10 + number, "push_received", type="Message", known="known", reason="acknowledge")
        log.chat(10.1 + number, "ping_ok", alias="117", reason="acknowledge", attempt=1)
    assert log.story()[-1] == "… 8 more pushed, each acknowledged within 0.10 s"
    assert sum("acknowledged 0.10 s later" in text for text in log.story()) == 2
    assert sum("acknowledged 0.10 s later" in text for text in log.story(full=True)) == 10


def test_a_chat_is_restored_after_its_server_was_lost(log: Log) -> None:
    log(100, "server_suspect", server="chat-1", alias="117", cause="connection refused")
    log(102, "server_down", server="chat-1", alias="117", cause="connection refused", attempts=3)
    log(
        102.1,
        "restoration_started",
        restoration=1,
        server="chat-1",
        alias="117",
        cause="unreachable",
        sessions=9,
    )
    log.chat(106.2, "ping_ok", alias="118", previous_alias="117", reason="restore", restoration=1, attempt=1)
    log.chat(106.21, "session_tokens_changed", alias="118", previous_alias="117")
    story = log.story()
    assert story[-1] == "Restored 4.2 s after chat-1 was lost; it is on chat-2 (alias 118) now"
    assert "The Chat Server chat-1 (alias 117) was lost: connection refused (3 reads in a row)" in story
    assert "It is on chat-2 (alias 118)." in log.verdict()


def test_a_server_that_is_another_chats_is_not_told(log: Log) -> None:
    log(100, "server_down", server="chat-2", alias="118", cause="connection refused", attempts=3)
    log(
        100,
        "restoration_started",
        restoration=1,
        server="chat-2",
        alias="118",
        cause="unreachable",
        sessions=9,
    )
    assert not [text for text in log.story() if "chat-2" in text]
    assert "nothing is waiting" in log.verdict()


@pytest.mark.parametrize("cause", ["operator", "announced"])
def test_a_restoration_somebody_asked_for_is_no_loss(log: Log, cause: str) -> None:
    log(100, "restoration_started", restoration=1, server="chat-1", alias="117", cause=cause, sessions=9)
    log.chat(101, "session_ended", alias="117", cause="chat_ended", reason="restore", restoration=1)
    assert "lost" not in log.verdict()
    assert log.story()[-2].startswith("Restoration #1 of 9 chats of chat-1 (alias 117) began")


def test_where_the_log_first_says_where_a_chat_was_the_loss_of_its_server_is_told() -> None:
    """Chats registered many at once have no line of their own until something happens to them."""
    log = Log()(0, "server_up", server="chat-1", alias="117")
    log(10, "server_down", server="chat-1", alias="117", cause="refused", attempts=3)
    log(11, "server_down", server="chat-2", alias="118", cause="refused", attempts=3)
    log.chat(15, "ping_ok", alias="119", previous_alias="117", reason="restore", restoration=1, attempt=1)
    assert log.story() == [
        "The Chat Server chat-1 (alias 117) was lost: refused (3 reads in a row)",
        "Restored 5.0 s after chat-1 was lost; it is on the Chat Server with alias 119 now",
    ]


def test_a_chat_lost_with_its_server_while_gms_and_the_daemon_were_away_says_why(log: Log) -> None:
    log.chat(60, "push_received", type="Message", known="known", reason="acknowledge")
    log(61, "gms_unavailable", cause="connect")
    log.chat(61, "ping_retry", alias="117", reason="acknowledge", cause="connect", attempt=1, next_ms=500)
    log(90, "server_down", server="chat-1", alias="117", cause="refused", attempts=3)
    log(400, "daemon_starting", version="1.0", pid=8)
    log(401, "daemon_ready", sessions=1, servers=2)
    log(401, "gms_unavailable", cause="connect")
    log(690, "gms_available", outage_ms=289_000)
    log.chat(691, "session_ended", alias="117", cause="chat_ended", reason="restore")
    verdict = log.verdict()
    assert "when GMS first answered for it again" in verdict
    assert (
        "Its Chat Server chat-1 had been lost 10 min before: most likely the chat was lost with it."
        in verdict
    )
    assert "asyncchatd was not running from" in verdict
    assert "(5 min of it)" in verdict
    assert verdict.count("no GMS node answered from") == 1, "one outage, though two daemons saw it"
    assert "(10 min of it)" in verdict
    assert "1 try brought no result (once the GMS node could not be reached)" in verdict
    assert any("broken off without a word" in text for text in log.story())


def test_an_ordinary_end_says_who_left(log: Log) -> None:
    log.chat(60, "push_received", type="ParticipantLeft", sender="Client", quit_code=0, known="known")
    log.chat(60.2, "session_ended", alias="117", cause="chat_ended", reason="acknowledge")
    verdict = log.verdict()
    assert "GMS said that the chat is over, in the answer to the ping that acknowledged a push" in verdict
    assert "the customer left (logged out)" in verdict
    assert "lost" not in verdict


def test_an_end_over_the_control_api_is_not_laid_at_gms_door(log: Log) -> None:
    log.chat(60, "session_removed", alias="117", cause="request")
    assert "ended over the control API" in log.verdict()
    assert "GMS did not say that it was over" in log.verdict()


def test_what_happens_to_the_plant_after_the_end_is_not_the_chats(log: Log) -> None:
    log.chat(60, "session_ended", alias="117", cause="chat_ended", reason="keepalive")
    before = log.story()
    log(70, "server_down", server="chat-1", alias="117", cause="refused", attempts=3)
    log(71, "gms_unavailable", cause="timeout")
    log.foreign(72, "asyncchatd.service: Main process exited, code=killed, status=9/KILL")
    assert log.story() == before


def test_a_chat_that_waits_at_the_end_of_the_log_says_since_when_and_why(log: Log) -> None:
    log.chat(60, "push_received", type="Message", known="known", reason="acknowledge")
    log(61, "gms_unavailable", cause="timeout")
    for attempt in range(1, 6):
        log.chat(
            60 + attempt * 10,
            "ping_retry",
            alias="117",
            reason="acknowledge",
            cause="timeout",
            attempt=attempt,
        )
    log(780, "loop_stalled", stall_ms=600)
    verdict = log.verdict()
    assert "the chat still waits, since 12 min: the push of" in verdict
    assert "was not acknowledged" in verdict
    assert "no GMS node answered" in verdict
    assert "… 4 more tries without result (GMS did not answer in time)" in log.story()


def test_a_daemon_that_is_stopped_at_the_end_pings_nobody(log: Log) -> None:
    log(60, "daemon_stopping", cause="asked to", in_flight=0)(61, "daemon_stopped", in_flight=0)
    assert "asyncchatd is not running since" in log.verdict()


def test_what_systemd_says_of_a_kill_is_told(log: Log) -> None:
    log.foreign(60, "asyncchatd.service: Main process exited, code=killed, status=9/KILL")
    log.foreign(60, "Started asyncchatd.service").foreign(60, "session killed", identifier="sshd")
    assert (
        log.story()[-1] == "systemd said: asyncchatd.service: Main process exited, code=killed, status=9/KILL"
    )


@pytest.mark.parametrize("event", ["push_unknown_session", "secure_key_damaged"])
def test_a_chat_without_tokens_cannot_be_pinged_and_says_so(event: str) -> None:
    log = Log().chat(0, event, alias="117", device_id="d")
    assert "cannot be pinged until the application registers it" in log.verdict()
    log.chat(9, "session_completed", alias="117")
    assert "Still alive" in log.verdict()


def test_a_long_wait_that_ended_well_is_still_told(log: Log) -> None:
    log.chat(60, "ping_retry", alias="117", reason="keepalive", cause="status_code_1", attempt=1)
    log.chat(660, "ping_ok", alias="117", reason="keepalive", attempt=2)
    assert log.story()[-1] == "Answered at last, 10 min after the trouble began, at try 2"
    assert "Its longest wait was 10 min" in log.verdict()


def test_a_refused_ping_is_told_until_the_next_answer(log: Log) -> None:
    log.chat(60, "ping_refused", alias="117", reason="keepalive", cause="status_code_2")
    log(90, "loop_stalled", stall_ms=600)
    assert "GMS refused its ping" in log.verdict()
    log.chat(100, "keepalive_ok", alias="117")
    assert "nothing is waiting" in log.verdict()


def test_a_log_that_does_not_know_the_chat_says_so(log: Log) -> None:
    assert log.verdict("0002") == "The log does not speak of the chat 0002."
    assert log.story(chat="0002") == []


def test_silence_is_told_and_the_keepalives_in_it(log: Log) -> None:
    log.chat(1801, "keepalive_ok", alias="117").chat(3601, "keepalive_ok", alias="117")
    log.chat(3700, "push_received", type="Message", known="known").chat(
        3700.1, "ping_ok", reason="acknowledge"
    )
    page = StoryLines()
    told = [line for each in narrate(ChatStory(CHAT), log.lines, None, None) for line in page.lines(each)]
    assert told[-2].strip() == "… 62 min of silence; 2 keepalives answered …"
    assert told[0].startswith("--- ")
    assert told[-1].endswith("GMS pushed a message (acknowledged 0.10 s later)")


def test_what_was_before_is_heard_and_not_told(log: Log) -> None:
    log(30, "server_down", server="chat-1", alias="117", cause="refused", attempts=3)
    log.chat(90, "ping_ok", alias="118", previous_alias="117", reason="restore", attempt=1)
    told = list(narrate(ChatStory(CHAT), log.lines, START + timedelta(seconds=60), None))
    assert [each.text for each in told] == [
        "Restored 60 s after chat-1 was lost; it is on chat-2 (alias 118) now"
    ]
    before = START + timedelta(seconds=20)
    assert [each.text[:26] for each in narrate(ChatStory(CHAT), log.lines, None, before)] == [
        "The application registered"
    ]


# A Chat Server, a restoration, everything.


def verdict_of(story: PlantStory, log: Log) -> tuple[list[str], str]:
    told = [each.text for each in narrate(story, log.lines, None, None)]
    return told, " ".join(story.verdict(log.lines[-1].time))


@pytest.fixture
def storm(log: Log) -> Log:
    """chat-1 is lost, its chats are restored, one is over; it comes back after a minute."""
    log(10, "server_down", server="chat-1", alias="117", cause="refused", attempts=3)
    log(
        10,
        "restoration_started",
        restoration=3,
        server="chat-1",
        alias="117",
        cause="unreachable",
        sessions=4,
    )
    for number in range(3):
        log(
            11,
            "ping_retry",
            chat_id=f"r{number}",
            alias="117",
            reason="restore",
            restoration=3,
            cause="timeout",
        )
        log(12, "ping_ok", chat_id=f"r{number}", alias="118", previous_alias="117", restoration=3, attempt=2)
    log(13, "session_ended", chat_id="r3", alias="117", cause="chat_ended", reason="restore", restoration=3)
    log(
        14,
        "restoration_finished",
        restoration=3,
        server="chat-1",
        restored=3,
        ended=1,
        refused=0,
        took_ms=4000,
    )
    log(20, "push_received", chat_id="other", alias="118", type="Message")
    return log(70, "server_up", server="chat-1", alias="117", process_os_pid="9")


def test_the_story_of_a_server_counts_its_losses(storm: Log) -> None:
    told, verdict = verdict_of(PlantStory(server="chat-1"), storm)
    assert "At the end chat-1 was up" in verdict
    assert "Lost 1 time: " in verdict
    assert "(for 60 s)" in verdict
    assert "done after 4.0 s: 3 chats restored, 1 over." in verdict
    assert any(
        "3 pings without result (GMS did not answer in time); 3 pings answered; 1 chat over" in t
        for t in told
    )


def test_the_story_of_a_restoration_names_the_chats_that_were_over(storm: Log) -> None:
    told, verdict = verdict_of(PlantStory(restoration=3), storm)
    assert told[0].startswith("Restoration #3 of 4 chats of chat-1 (alias 117) began")
    assert "Over when they were asked for: r3." in verdict
    assert "3 pings brought no result" in verdict
    assert not any("is up" in text for text in told)


def test_the_story_of_a_restoration_says_whom_it_left_without_an_answer(log: Log) -> None:
    log(10, "restoration_started", restoration=4, server="chat-1", alias="117", cause="operator", sessions=4)
    said = {
        **{"chat_id": "r1", "alias": "117", "reason": "restore", "restoration": 4, "cause": "status_code_2"},
        "detail": "HTTP 200, statusCode 2, error 34: Chat Server is failing over",
        "said": "error 34: Chat Server is failing over",
    }
    log(11, "ping_retry", **said, attempt=1, next_ms=4000)
    log(140, "ping_refused", **said)
    log(
        140,
        "restoration_incomplete",
        **{"restoration": 4, "server": "chat-1", "took_ms": 130_000},
        **{"restored": 2, "ended": 1, "refused": 1, "moved": 0},
    )
    _, verdict = verdict_of(PlantStory(restoration=4), log)
    assert "was over after 2 min and left 1 chat without an answer" in verdict
    assert "2 chats restored, 1 over." in verdict
    assert "Left without an answer: r1." in verdict
    assert "finished" not in verdict
    told = log.story(chat="r1")
    assert any("(error 34: Chat Server is failing over)" in text for text in told)


def test_a_restoration_that_goes_on_is_told_as_such(log: Log) -> None:
    log(10, "restoration_started", restoration=4, server="chat-1", alias="117", cause="operator", sessions=4)
    log(
        15, "restoration_progress", restoration=4, server="chat-1", restored=1, waiting=3, rate=0.2, left_s=15
    )
    told, verdict = verdict_of(PlantStory(restoration=4), log)
    assert "was not finished at the end of the log" in verdict
    assert told[-1].endswith("1 chat restored, 3 waiting, 0.2/s, about 15 s to go")


def test_a_restoration_that_another_took_over_is_not_called_unfinished(log: Log) -> None:
    log(
        10,
        "restoration_started",
        restoration=4,
        server="chat-1",
        alias="117",
        cause="unreachable",
        sessions=4,
    )
    log(20, "restoration_started", restoration=5, server="chat-1", alias="117", cause="returned", sessions=4)
    log(21, "restoration_finished", restoration=5, server="chat-1", restored=4, moved=0, took_ms=1000)
    log(22, "restoration_finished", restoration=4, server="chat-1", restored=1, moved=3, took_ms=10_000)
    told, verdict = verdict_of(PlantStory(restoration=4), log)
    assert any("Restoration #5 of 4 chats of chat-1" in text for text in told)
    assert verdict == (
        "Restoration #4 of chat-1 was done after 10 s: 1 chat restored, 3 taken over by a later restoration."
    )
    assert "not finished" not in verdict_of(PlantStory(server="chat-1"), log)[1]


def test_a_server_or_restoration_nobody_knows_is_said_to_be(log: Log) -> None:
    assert (
        verdict_of(PlantStory(server="chat-9"), log)[1] == "The log does not speak of the Chat Server chat-9."
    )
    assert verdict_of(PlantStory(restoration=9), log)[1] == "The log does not speak of restoration #9."


def test_told_in_full_each_chat_is_named(storm: Log) -> None:
    told, _ = verdict_of(PlantStory(full=True), storm)
    assert "chat other: GMS pushed a message" in told
    assert sum(text.startswith("chat r") for text in told) == 7


# A day.


def test_a_day_in_numbers(storm: Log) -> None:
    for number in range(100):
        storm(100 + number, "push_received", chat_id=f"p{number}", type="Message", known="known")
        storm(100.5 + number, "ping_ok", chat_id=f"p{number}", alias="118", reason="acknowledge")
    storm(300, "push_received", chat_id="slow", known="known")
    storm(340, "ping_ok", chat_id="slow", alias="118", reason="acknowledge")
    storm(341, "push_received", chat_id="waits", known="known")
    storm(342, "gms_unavailable", cause="connect")(352, "gms_available", outage_ms=10_000)
    summary = Summary()
    for line in storm.lines:
        summary.hear(line)
    shown = summary.shown(START, storm.lines[-1].time, 300, 2)
    assert shown["acknowledged"] == 101
    assert shown["acknowledged_p50_seconds"] == pytest.approx(0.5, rel=0.05)
    assert shown["unacknowledged"] == 2, "one of the storm's, and one at the end"
    assert shown["gms_outage_seconds"] == 10.0
    assert shown["ended"] == {"GMS said so to a restore ping": 1}
    slowest = shown["slowest_acknowledgements"]
    assert isinstance(slowest, list)
    assert (slowest[0]["chat_id"], slowest[0]["seconds"], len(slowest)) == ("slow", 40.0, 5)
    text = "\n".join(summary.text(START, storm.lines[-1].time, 300, 2))
    assert "3 (3 times GMS did not answer in time" in text
    assert "Restoration #3 of chat-1 was done after 4.0 s: 3 chats restored, 1 over" in text
    assert "1 time, 10 s" in text


def test_every_event_that_is_counted_has_words_for_one_and_for_several() -> None:
    counted = {event.value for event in Event if Trait.COUNTED in event.traits}
    assert {str(event) for event in COUNTED} == counted
    for one, many in COUNTED.values():
        assert one.startswith("1 ")
        assert many.startswith("{} ")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"type": "ParticipantLeft", "sender": "Client", "quit_code": 0}, "the customer left (logged out)"),
        ({"type": "IdleClose", "known": "resent"}, "the idle chat is closed again"),
        ({"type": "Message", "sender": "Agent"}, "GMS pushed a message from an agent"),
        ({"type": "Message", "reason": "restore"}, "the Chat Server is about to stop"),
    ],
)
def test_what_a_push_told_is_a_sentence_of_its_own(fields: dict[str, object], told: str) -> None:
    assert told_by_push(Said(fields, {})) == told


def test_every_event_has_a_sentence_of_its_own() -> None:
    assert [event.value for event in Event if event not in SENTENCES] == []


def test_a_day_tells_of_the_store_and_of_a_changed_configuration(log: Log) -> None:
    log(70, "config_reloaded", config="a.toml", changed=["ping.interval", "restoration.max_rate"])
    log(75, "config_reloaded", config="a.toml", changed=[])
    log(76, "log_file_begun", file="/var/log/asyncchatd/asyncchatd.log")
    log(
        80,
        "store_unwritable",
        store="chats.db",
        cause="chats.db was deleted or moved away while it is in use",
    )
    log(80, "store_put_back", store="chats.db", sessions=2)
    log(80, "store_writable", store="chats.db", outage_ms=140)
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    told = "\n".join(summary.text(START, log.lines[-1].time, 5, 0))
    assert "was taken over: ping.interval, restoration.max_rate\n" in told
    assert "The configuration was read anew, and nothing in it had changed\n" in told
    assert "the log is in a file: asyncchatd logs '/var/log/asyncchatd/asyncchatd.log'*\n" in told
    assert "Nothing could be written any more, pushes got 503: chats.db was deleted or moved away" in told
    assert "it was written to its path again, with all that was in it: 2 chats" in told
    assert "The store could be written again, after 0.14 s" in told


def test_a_day_full_of_trouble_keeps_its_first_and_last(log: Log) -> None:
    for number in range(500):
        log(10 + number, "loop_stalled", stall_ms=number)
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    text = "\n".join(summary.text(START, log.lines[-1].time, 500, 0))
    assert "461 more" in text
    assert text.endswith("stood still for 0.50 s")


# Times as people give them.

NOW = datetime(2026, 11, 22, 15, 30, tzinfo=UTC).astimezone()
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", lambda: NOW - timedelta(hours=2)),
        ("30m ago", lambda: NOW - timedelta(minutes=30)),
        ("today", lambda: MIDNIGHT),
        ("Yesterday", lambda: MIDNIGHT - timedelta(days=1)),
        ("now", lambda: NOW),
        ("9:05", lambda: MIDNIGHT + timedelta(hours=9, minutes=5)),
        ("14:02:11", lambda: MIDNIGHT + timedelta(hours=14, minutes=2, seconds=11)),
        ("2026-11-20", lambda: datetime(2026, 11, 20).astimezone()),
        ("2026-11-20 14:30", lambda: datetime(2026, 11, 20, 14, 30).astimezone()),
        ("2026-11-20T14:30:00Z", lambda: datetime(2026, 11, 20, 14, 30, tzinfo=UTC)),
    ],
)
def test_times_as_people_give_them(text: str, expected: Callable[[], datetime]) -> None:
    assert moment(text, NOW) == expected()


@pytest.mark.parametrize("text", ["", "soon", "25:99", "2026-13-01", "-2h"])
def test_what_is_no_time_says_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match="2h, 30m, today"):
        moment(text, NOW)


def pushed(log: Log, second: float) -> None:
    log.chat(second, "push_received", type="Message", known="known", reason="acknowledge")


def test_a_push_that_the_application_acknowledged_waits_no_more(log: Log) -> None:
    pushed(log, 10)
    log.chat(10.01, "acknowledgement_asked", consumer="app", for_ms=4998)
    log.chat(13, "acknowledgement_came", alias="117", cause="registration")
    assert log.story()[-1].endswith(
        "with a Refresh of its own and told what GMS replied, 3.0 s after it came"
    )
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    shown = summary.shown(log.lines[0].time, log.lines[-1].time, len(log.lines), 0)
    assert (shown["acknowledged"], shown["unacknowledged"]) == (1, 0)
    assert shown["acknowledged_p50_seconds"] == pytest.approx(3, rel=0.05)
    pushed(log, 19)
    log.chat(19.03, "ping_ok", alias="117", reason="acknowledge", attempt=1)
    assert log.story()[-1] == "GMS pushed a message (acknowledged 0.03 s later)"


def test_by_the_log_of_one_node_another_one_may_have_pinged_the_chat(log: Log) -> None:
    pushed(log, 10)
    assert "another node" not in log.verdict()
    log(0, "node_joined", peer="north", number=1)
    assert "This is the log of north alone: another node may have pinged the chat" in log.verdict()
    log(0, "node_joined", peer="south", number=2)
    assert "another node" not in log.verdict()


def test_while_one_node_of_several_is_away_the_others_go_on(log: Log) -> None:
    pushed(log, 10)
    log.chat(10.1, "ping_ok", alias="117", reason="acknowledge", attempt=1)
    for second, name in ((0, "north"), (20, "south")):
        log(second, "daemon_starting", version="0.1.0", pid=second)
        log(second, "node_joined", peer=name, number=second)
        log(second, "daemon_ready")
    log(30, "daemon_stopping", cause="asked to")
    log(31, "daemon_stopped")
    assert "is not running" not in log.verdict()
    log(90, "daemon_starting", version="0.1.0", pid=90)
    assert log.story()[-1] == "asyncchatd 0.1.0 was started (process 90)"
    pushed(log, 95)
    log(120, "loop_stalled", stall_ms=600)
    assert "was not running" not in log.verdict()


def test_a_push_after_the_application_was_asked_still_waits(log: Log) -> None:
    pushed(log, 10)
    log.chat(10.01, "acknowledgement_asked", consumer="app", for_ms=4998)
    pushed(log, 12)
    log.chat(13, "acknowledgement_came", alias="117", cause="registration")
    assert "still waits" in log.verdict()
