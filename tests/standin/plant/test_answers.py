"""What the plant answers."""

from __future__ import annotations

from asyncchatd.wire.chat_api.calls import refresh
from asyncchatd.wire.chat_api.replies import read_reply

from ..plant_rig import Rig


def test_error_replies_carry_fields_that_punish_whoever_trusts_them(rig: Rig) -> None:
    customer = rig.chat()
    for name in rig.plant.servers:
        rig.plant.servers.kill(name)
    made = refresh(customer.session.service, customer.tokens, customer.position)
    answer = rig.ask(made)
    assert answer is not None
    assert b'"secureKey":"not-the-secure-key"' in answer.body
    assert b'"chatEnded":true' in answer.body
    assert read_reply(answer.body).status_code == 1
