"""The judgement of pushes: who is looked at when, and when pushes are missing."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from asyncchatd.gateway.watching.pushes import LATE_PUSH_SECONDS, PushJudge

TEN_MINUTES = 600.0
FALLBACK = 5.0


@dataclass
class Watch:
    """A judge, and the time. Whoever polls, does it every 3 s."""

    judge: PushJudge = field(default_factory=lambda: PushJudge(TEN_MINUTES, FALLBACK, lambda: 1.0))
    now: float = 0.0
    polling: set[str] = field(default_factory=set)
    looks: dict[str, list[float]] = field(default_factory=dict)
    refreshed: dict[str, int] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    """Chats with a message that the next look finds."""

    def poll(self, *chats: str, subscribed: bool = True) -> None:
        for chat in chats:
            self.polling.add(chat)
            self.judge.polled(chat, self.now, subscribed=subscribed)

    def push(self, chat: str) -> None:
        """It comes, and its Refresh shows what it announced."""
        self.judge.pushed(chat, self.ms, self.now)
        self.judge.came(chat, self.now)
        self.refreshed[chat] = self.ms + 1

    @property
    def ms(self) -> int:
        return round(self.now * 1000) + 1_000_000

    def pass_by(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            for chat in self.polling if self.now % 3 == 0 else ():
                self.judge.polled(chat, self.now)
            self.judge.pass_on(self.now)
            while (due := self.judge.next(self.now)) is not None:
                self.judge.looked(due, self.now, self.refreshed.get(due, 0))
                self.refreshed[due] = self.ms
                self.looks.setdefault(due, []).append(self.now)
                if due in self.unseen:
                    self.unseen.remove(due)
                    self.judge.came(due, self.now)

    def seen(self, chat: str = "a") -> list[float]:
        return self.looks.get(chat, [])


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_chat_that_is_polled_is_looked_at_every_check_interval(watch: Watch) -> None:
    watch.poll("a")
    watch.pass_by(599)
    assert watch.seen() == []
    watch.pass_by(1300)
    assert watch.seen() == [600, 1200, 1800]


def test_a_push_spares_the_look(watch: Watch) -> None:
    watch.poll("a")
    watch.pass_by(400)
    watch.push("a")
    watch.pass_by(599)
    assert watch.seen() == []


def test_nobody_polls_and_nobody_looks(watch: Watch) -> None:
    watch.poll("a")
    watch.judge.called("a", watch.now)
    watch.polling.clear()
    watch.pass_by(3000)
    assert watch.seen() == [15, 30, 60]  # the minute in which somebody may still poll
    watch.poll("a")
    watch.pass_by(1)
    assert watch.seen() == [15, 30, 60, 3000.5]  # it was not looked at for long


def test_after_a_call_looks_come_ever_more_seldom(watch: Watch) -> None:
    watch.poll("a")
    watch.judge.called("a", 0)
    watch.pass_by(1100)
    assert watch.seen() == [15, 30, 60, 120, 240, 480, 1080]


def test_an_answer_that_came_by_a_push_ends_them(watch: Watch) -> None:
    watch.poll("a")
    watch.judge.called("a", 0)
    watch.pass_by(40)
    watch.push("a")
    watch.pass_by(500)
    assert watch.seen() == [15, 30]


def test_a_look_that_shows_what_no_push_announced_is_followed_by_many(watch: Watch) -> None:
    watch.poll("a", "b")
    watch.judge.called("a", 0)
    watch.unseen.add("a")
    watch.pass_by(40)
    assert watch.seen() == [15, 20, 25, 30, 35, 40]
    assert (watch.judge.failing, watch.judge.misses, watch.seen("b")) == (1, 1, [])
    watch.push("a")
    watch.pass_by(300)
    assert watch.seen()[-1] == 40
    assert watch.judge.failing == 0


def test_a_push_that_is_slower_than_the_look_is_none_missed(watch: Watch) -> None:
    watch.poll("a")
    watch.judge.called("a", 0)
    watch.unseen.add("a")
    watch.pass_by(15 + LATE_PUSH_SECONDS - 0.5)
    watch.judge.pushed("a", watch.ms, watch.now)
    watch.pass_by(300)
    assert watch.seen() == [15]
    assert watch.judge.misses == 0


def test_a_push_before_the_look_announced_what_it_shows(watch: Watch) -> None:
    """The look was quicker than the Refresh that the push caused."""
    watch.poll("a")
    watch.judge.called("a", 0)
    watch.pass_by(14.5)
    watch.judge.pushed("a", watch.ms, watch.now)
    watch.unseen.add("a")
    watch.pass_by(100)
    assert watch.judge.misses == 0


def test_a_push_of_before_the_last_refresh_announced_nothing_of_it(watch: Watch) -> None:
    watch.poll("a")
    watch.pass_by(10)
    watch.push("a")
    watch.judge.called("a", watch.now)
    watch.unseen.add("a")
    watch.pass_by(30)
    assert watch.judge.misses == 1


def test_what_is_shown_by_other_pings_says_nothing(watch: Watch) -> None:
    watch.poll("a")
    watch.pass_by(100)
    watch.judge.came("a", watch.now)
    watch.pass_by(100)
    assert (watch.judge.misses, watch.judge.failing) == (0, 0)


def test_many_misses_have_all_chats_looked_at_until_looks_find_nothing(watch: Watch) -> None:
    broken = [f"broken-{number}" for number in range(4)]
    watch.poll("calm", *broken)
    for chat in broken:
        watch.judge.called(chat, 0)
    watch.unseen.update(broken)
    watch.pass_by(21)
    assert (watch.judge.misses, watch.judge.missing) == (4, False)  # fewer than five say nothing
    watch.unseen.add(broken[0])
    watch.pass_by(10)
    assert (watch.judge.misses, watch.judge.missing) == (5, True)
    watch.pass_by(20)
    assert watch.seen("calm") == [30, 35, 40, 45, 50]
    for chat in broken:
        watch.push(chat)
    watch.pass_by(1000)
    assert not watch.judge.missing
    count = len(watch.seen("calm"))
    watch.pass_by(500)
    assert len(watch.seen("calm")) <= count + 1


def test_few_misses_among_many_looks_are_no_alarm(watch: Watch) -> None:
    watch.poll(*map(str, range(400)))
    watch.pass_by(605)
    for number in range(8):
        watch.judge.called(str(number), watch.now)
        watch.unseen.add(str(number))
    watch.pass_by(21)
    assert (watch.judge.misses, watch.judge.missing) == (8, False)


def test_a_chat_without_a_subscription_is_looked_at_and_says_nothing_of_pushes(watch: Watch) -> None:
    watch.judge.polled("a", 0, subscribed=False)
    watch.unseen.add("a")
    for _ in range(4):
        watch.pass_by(5)
        watch.judge.polled("a", watch.now, subscribed=False)
    assert watch.seen() == [5, 10, 15, 20]
    assert (watch.judge.looks, watch.judge.misses) == (0, 0)


def test_a_chat_that_is_over_is_forgotten(watch: Watch) -> None:
    watch.poll("a")
    watch.judge.called("a", 0)
    watch.judge.forget("a")
    watch.polling.clear()
    watch.pass_by(700)
    assert watch.seen() == []


def test_ten_thousand_polls_without_news_are_no_look(watch: Watch) -> None:
    watch.push("a")
    for number in range(10_000):
        watch.judge.polled("a", number * 0.05)
        assert watch.judge.next(number * 0.05) is None
