"""The judges of what a soak of several nodes took down: they find what is amiss."""

from __future__ import annotations

import pytest

from asyncchatd.model import TokenNews
from asyncchatd.standin import Plant, PlantSettings
from asyncchatd.standin.plant.transcript import tokens_of
from asyncchatd.standin.pushes import SentPush
from asyncchatd.standin.requests import Received
from asyncchatd.wire import Operation

from .nodes.clocks import early, gaps
from .nodes.pushes import followed
from .nodes.standing import restoring
from .nodes.witness import AnsweredPush, ClaimOf, PlantWitness

HOUR = 3_600.0


@pytest.fixture
def seen() -> PlantWitness:
    return PlantWitness(Plant())


def test_a_request_is_judged_by_the_claim_before_it(seen: PlantWitness) -> None:
    seen.requests_of["one"] = [5.0, 10.0, 20.0]
    found = early(seen, {"one": [ClaimOf(9.0, 8.5), ClaimOf(19.9, 21.0)]})
    assert found == [-1.5, 1.0], (
        "the second one came a second before it was due; before the first nothing was seen"
    )


def test_a_keepalive_is_told_from_what_a_push_or_a_lost_chat_server_asks_for(seen: PlantWitness) -> None:
    seen.requests_of |= {"one": [0.0, 18.0, 30.0], "pushed": [0.0, 5.0], "restored": [0.0, 5.0]}
    seen.pushed_at["pushed"] = [4.0]
    seen.restored["restored"] = 5.0
    assert gaps(seen, 18.0) == [18.0, 12.0]


def test_each_push_is_followed_by_a_request_of_its_own(seen: PlantWitness) -> None:
    seen.pushes = [AnsweredPush("one", at, at + 1, "") for at in (0.0, 10.0, 20.0)]
    seen.pushed_at["one"] = [0.0, 10.0, 20.0]
    seen.requests_of["one"] = [3.0, 20.5]
    found = followed(seen)
    assert (found.without, found.overtaken) == (0, 1), "the second one has to share that of the third"
    assert found.waited == [2.0, 9.5, 0.0]
    seen.requests_of["one"] = [3.0]
    assert followed(seen).without == 2


def test_what_a_stopped_node_holds_is_no_part_of_the_restoration(seen: PlantWitness) -> None:
    seen.restored = {"one": 1.0, "two": 3.0, "held": 61.0}
    seen.requests = [0.5, 1.0, 2.0, 3.0, 61.0]
    assert restoring(seen, {"held"}) == (2.0, 3)


async def test_requests_and_pushes_are_taken_down_while_it_watches() -> None:
    sent: list[SentPush] = []
    now = 100.0
    plant = Plant(PlantSettings(push_url="http://127.0.0.1:1/push"), now=lambda: now, send_push=sent.append)
    [session, other] = plant.start_chats(2)
    seen = PlantWitness(plant)
    async with seen.watching():
        plant.say(session, "How may I help you?")
        assert (seen.unanswered, seen.unasked) == (1, {session.chat_id})
        now += 1
        plant.push_done(delivered=True, push=sent[0])
        assert (seen.unanswered, len(seen.pushes)) == (0, 1)
        assert seen.pushes[0].answered_at - seen.pushes[0].sent_at == pytest.approx(1.0)
        plant.servers.kill(other.process.server.name)
        for each in (session, other):
            now += 1
            _refresh(plant, each.chat_id, tokens_of(each))
    assert not seen.unasked
    assert list(seen.restored) == [other.chat_id]
    _refresh(plant, session.chat_id, tokens_of(session))
    plant.say(session, "Are you still there?")
    assert (len(seen.requests), len(sent), len(seen.pushed_at[session.chat_id])) == (2, 2, 1)


def _refresh(plant: Plant, chat_id: str, tokens: TokenNews) -> None:
    plant.leave(
        plant.arrive(Received("customer-support", chat_id, Operation.REFRESH, None, {}, {}, tokens, {}))
    )
