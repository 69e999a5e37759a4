"""The story of a chat's events on their way to consumers: fetched, taken, refused, waiting."""

from __future__ import annotations

from asyncchatd.story.summary import Summary

from .rig import Log


def fetched(log: Log, second: float, first: int, last: int | None = None, *, push: bool = True) -> None:
    """A push, and 40 ms later the ping that fetches these events."""
    if push:
        log.chat(second, "push_received", type="Message", sender="Agent", known="known", reason="acknowledge")
    reason, indexes = (
        "acknowledge" if push else "request",
        {"first_index": first, "last_index": last or first},
    )
    log.chat(second + 0.04, "ping_ok", alias="117", reason=reason, attempt=1, **indexes)


def delivered(log: Log, second: float, first: int, last: int | None = None, **more: object) -> None:
    last = last or first
    fields = {"consumer": "app", "count": last - first + 1, "tries": 1, "lag_ms": 90, **more}
    log.chat(second, "events_delivered", first_index=first, last_index=last, **fields)


def refused(log: Log, second: float, event: str, first: int, **more: object) -> None:
    log.chat(
        second, event, consumer="app", count=1, first_index=first, last_index=first, cause="HTTP 400", **more
    )


def test_a_push_its_event_and_who_took_it_are_one_sentence(log: Log) -> None:
    fetched(log, 10, 7)
    delivered(log, 10.13, 7, tries=2)
    assert log.story()[-1] == (
        "GMS pushed a message from an agent (acknowledged 0.04 s later with event 7; app took it 0.09 s after that,"
        " at try 2)"
    )
    assert "nothing is waiting" in log.verdict()


def test_told_in_full_a_delivery_has_a_sentence_of_its_own(log: Log) -> None:
    fetched(log, 10, 7, 9)
    delivered(log, 10.13, 7, 9)
    assert log.story(full=True)[-2:] == [
        "GMS pushed a message from an agent (acknowledged 0.04 s later with events 7 to 9)",
        "Consumer app took events 7 to 9, 0.09 s after the first was fetched",
    ]


def test_what_came_between_a_push_and_its_delivery_parts_them(log: Log) -> None:
    fetched(log, 10, 7)
    log(10.05, "consumer_down", consumer="app", cause="connection refused")
    log(13, "consumer_up", consumer="app", took_ms=2950)
    delivered(log, 13.01, 7, tries=3, lag_ms=2970)
    assert log.story()[-4:] == [
        "GMS pushed a message from an agent (acknowledged 0.04 s later with event 7)",
        "Events wait for consumer app, whose endpoint does not answer: connection refused",
        "Consumer app takes events again, after 3.0 s",
        "Consumer app took event 7, 3.0 s after it was fetched, at try 3",
    ]
    assert "nothing is waiting" in log.verdict()


def test_quick_deliveries_are_drawn_together_with_their_pushes(log: Log) -> None:
    for number in range(10):
        fetched(log, 10 + number, 7 + number)
        delivered(log, 10.13 + number, 7 + number)
    assert (
        log.story()[-1] == "… 8 more pushed, each acknowledged within 0.04 s, and taken by app within 0.09 s"
    )


def test_a_push_that_one_consumer_did_not_take_is_not_drawn_together_with_those_it_took(log: Log) -> None:
    for number in range(4):
        fetched(log, 10 + number, 7 + number)
        delivered(log, 10.13 + number, 7 + number)
        if number < 3:
            delivered(log, 10.14 + number, 7 + number, consumer="archive")
    assert "archive took it" not in log.story()[-1]
    assert "Event 10 waits for consumer archive, since 0.09 s, and the log does not say why" in log.verdict()


def test_events_that_wait_for_an_endpoint_that_is_down_are_said_to_wait(log: Log) -> None:
    fetched(log, 10, 6)
    delivered(log, 10.13, 6)
    log(20, "consumer_down", consumer="app", cause="no answer in time")
    fetched(log, 30, 7)
    fetched(log, 40, 8, 9)
    verdict = log.verdict()
    assert "nothing is waiting" not in verdict
    assert "no ping is waiting, but events are" in verdict
    assert "Events 7 to 9 wait for consumer app, since 10 s: its endpoint does not answer since" in verdict
    assert "(no answer in time)" in verdict


def test_a_paused_consumer_is_paused_over_a_restart_and_says_how_to_go_on(log: Log) -> None:
    fetched(log, 10, 6)
    delivered(log, 10.13, 6)
    log(20, "consumer_gone", consumer="app", cause="HTTP 410")
    log(30, "daemon_starting", version="1.0", pid=8)
    fetched(log, 40, 7)
    assert "Event 7 waits for consumer app, since" in log.verdict()
    assert "asyncchatd consumers resume app" in log.verdict()
    log(50, "consumer_resumed", consumer="app")
    delivered(log, 51, 7)
    assert "nothing is waiting" in log.verdict()


def test_an_endpoint_that_was_down_before_a_restart_is_not_called_down_after_it(log: Log) -> None:
    fetched(log, 10, 6)
    delivered(log, 10.13, 6)
    log(20, "consumer_down", consumer="app", cause="connection refused")
    log(30, "daemon_starting", version="1.0", pid=8)
    fetched(log, 40, 7)
    assert "connection refused" not in log.verdict()
    assert "Event 7 waits for consumer app" in log.verdict()


def test_a_refused_batch_and_what_waits_behind_it_are_told_until_it_is_taken(log: Log) -> None:
    fetched(log, 10, 7)
    refused(log, 10.1, "events_refused", 7)
    fetched(log, 20, 8)
    assert "Consumer app refuses event 7 since" in log.verdict()
    assert "(HTTP 400); it is tried again, and what came after waits behind it." in log.verdict()
    log(25, "consumer_paused", consumer="app")
    assert "(HTTP 400): it is paused since" in log.verdict()
    log(26, "consumer_resumed", consumer="app")
    delivered(log, 30, 7, tries=4)
    delivered(log, 30.1, 8)
    assert "nothing is waiting" in log.verdict()


def test_several_events_that_are_refused_are_several(log: Log) -> None:
    fetched(log, 10, 7, 9)
    more = {"consumer": "app", "count": 3, "cause": "HTTP 400"}
    log.chat(10.1, "events_refused", first_index=7, last_index=9, **more)
    assert "refuses events 7 to 9 since" in log.verdict()
    assert "; they are tried again, and what came after waits behind them." in log.verdict()
    log.chat(3700, "events_parked", first_index=7, last_index=9, tries=20, **more)
    assert "Events 7 to 9 were put aside at" in log.verdict()
    assert "refused them for too long" in log.verdict()


def test_a_parked_batch_is_told_until_it_was_replayed_while_its_chat_goes_on(log: Log) -> None:
    fetched(log, 10, 7)
    refused(log, 10.1, "events_refused", 7)
    refused(log, 3700, "events_parked", 7, tries=20)
    fetched(log, 3710, 8)
    delivered(log, 3710.13, 8)
    verdict = log.verdict()
    assert "nothing is waiting" not in verdict
    assert "Event 7 was put aside at" in verdict
    assert "(HTTP 400). Mend the consumer, then: asyncchatd consumers replay app." in verdict
    delivered(log, 3800, 7, tries=21)
    assert "nothing is waiting" in log.verdict()


def test_what_is_not_taken_at_the_end_of_a_chat_is_told_with_its_end(log: Log) -> None:
    fetched(log, 10, 7)
    delivered(log, 10.13, 7)
    log(20, "consumer_down", consumer="app", cause="connection refused")
    log.chat(30, "session_ended", alias="117", reason="acknowledge", first_index=8, last_index=8)
    assert "Event 8 waits for consumer app" in log.verdict()


def test_with_a_session_that_is_removed_goes_what_was_kept_for_consumers(log: Log) -> None:
    fetched(log, 10, 7)
    refused(log, 10.1, "events_refused", 7)
    log.chat(20, "session_removed", cause="request")
    assert "app" not in log.verdict().replace("application", "")


def test_what_nobody_is_said_to_have_taken_is_not_said_to_have_been_taken(log: Log) -> None:
    """A consumer that fetches by itself leaves no line."""
    fetched(log, 10, 7)
    verdict = log.verdict()
    assert "The log does not say that a consumer has taken event 7" in verdict
    assert "leaves no line; asyncchatd consumers shows how far each is." in verdict
    log(20, "consumer_down", consumer="app", cause="connection refused")
    assert "Consumer app: its endpoint does not answer since" in log.verdict()


def test_a_consumer_that_is_told_of_ends_alone_is_not_waited_for(log: Log) -> None:
    fetched(log, 10, 7)
    delivered(log, 10.13, 7)
    log.chat(20, "events_delivered", consumer="billing", count=1, tries=1, lag_ms=5)
    fetched(log, 30, 8)
    delivered(log, 30.13, 8)
    assert "nothing is waiting" in log.verdict()


def test_a_chat_of_which_nobody_is_told_waits_for_nobody(log: Log) -> None:
    log.chat(10, "push_received", type="Message", known="known", reason="acknowledge")
    log.chat(
        10.03, "ping_ok", alias="117", reason="acknowledge", attempt=1, first_index=None, last_index=None
    )
    assert "nothing is waiting" in log.verdict()
    assert "consumer" not in log.verdict()


def test_a_summary_counts_what_each_consumer_took_and_how_late(log: Log) -> None:
    for number in range(4):
        delivered(log, 10 + number, 7 + number, lag_ms=100)
    delivered(log, 20, 20, 29, consumer="archive", lag_ms=3000)
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    text = "\n".join(summary.text(log.lines[0].time, log.lines[-1].time, 1, 0))
    assert "4 events to app; half of the batches within 0.10 s of being fetched, 95 % within 0.10 s" in text
    assert "10 events to archive; half of the batches within 3.0 s" in text
    told = summary.shown(log.lines[0].time, log.lines[-1].time, 1, 0)["delivered"]
    assert told == {
        "app": {"events": 4, "p50_seconds": 0.1, "p95_seconds": 0.1},
        "archive": {"events": 10, "p50_seconds": 2.9537, "p95_seconds": 2.9537},
    }


# -- through the gateway -------------------------------------------------------------------------------


def shown(log: Log, second: float, first: int, last: int | None = None, lag_ms: int = 200) -> None:
    last = last or first
    log.chat(
        second, "events_shown", count=last - first + 1, first_index=first, last_index=last, lag_ms=lag_ms
    )


def test_a_push_and_what_the_customers_page_was_told_are_one_sentence(log: Log) -> None:
    log.chat(1, "chat_opened", alias="117", service="support", node="http://gms-1", took_ms=5)
    fetched(log, 10, 7)
    shown(log, 10.24, 7)
    assert log.story()[-1] == (
        "GMS pushed a message from an agent (acknowledged 0.04 s later with event 7; the customer's page took it 0.20 s"
        " after that)"
    )
    assert "nothing is waiting" in log.verdict()


def test_what_comes_after_a_silence_says_how_late_it_was(log: Log) -> None:
    fetched(log, 10, 7, 8)
    shown(log, 7210, 7, 8, lag_ms=7_200_000)
    assert log.story()[-1].endswith("; the customer's page took it 2 h after that)")
    assert (
        log.story(full=True)[-1]
        == "The customer's page was told events 7 to 8, 2 h after the first was fetched"
    )


def test_what_no_page_has_asked_for_is_told(log: Log) -> None:
    log.chat(1, "chat_opened", alias="117", service="support", node="http://gms-1", took_ms=5)
    fetched(log, 10, 7)
    log.chat(310, "keepalive_ok", alias="117", took_ms=3)
    assert "No page of the customer has asked for event 7, fetched 5 min before." in log.verdict()
    shown(log, 320, 7, lag_ms=310_000)
    fetched(log, 330, 9)
    log.chat(390, "keepalive_ok", alias="117", took_ms=3)
    assert "No page of the customer has asked for event 9, fetched" in log.verdict()


def test_the_summary_counts_what_pages_were_told(log: Log) -> None:
    shown(log, 10, 7, 9)
    shown(log, 12, 10)
    summary = Summary()
    for line in log.lines:
        summary.hear(line)
    text = "\n".join(summary.text(log.lines[0].time, log.lines[-1].time, 1, 0))
    assert "4 events to the customer's page; half of the batches within 0.20 s" in text
