"""The subscription: ours is put in, and whatever a client says of pushes is left out."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from conftest import settings_of
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.config import GatewaySettings
from asyncchatd.gateway.subscription import new_device_id, subscribed, without_subscription
from asyncchatd.wire import FORM, Pair, client_call, read_body


def gateway(directory: Path, **more: object) -> GatewaySettings:
    (directory / "keys").write_text("9b" * 32)
    settings = settings_of(directory, gateway={"key_file": "keys", "node_group": "cluster", **more})
    assert settings.gateway is not None
    return settings.gateway


OF_PUSHES = [
    "GCTI_Chat_PushSubscribe",
    "GCTI_GMS_NodeGroup",
    "GCTI_GMS_PushDeviceId",
    "GCTI_GMS_Later",
    "GCTI_GMS_",
]


@st.composite
def spelled(draw: st.DrawFn) -> str:
    """A name that speaks of pushes, as a client may write it in a form."""
    key = "".join(
        draw(st.sampled_from([each.lower(), each.upper()])) for each in draw(st.sampled_from(OF_PUSHES))
    )
    mark = draw(st.sampled_from(["", '"', "'", " "]))
    name = f"userData[{mark}{key}{mark}]"
    for _ in range(draw(st.integers(0, 2))):
        name = quote(name, safe=draw(st.sampled_from(["", "[]", "_"])))
    return name


words = st.text("abcdefgh ", max_size=8)
others = st.builds("userData[{}]".format, words) | words


@given(st.lists(st.tuples(others, words, st.none() | spelled()), max_size=6))
def test_whatever_the_spelling_and_the_rest_stays_in_order(said: list[tuple[str, str, str | None]]) -> None:
    parts = []
    for name, value, theirs in said:
        parts += [urlencode([(name, value)])] + ([] if theirs is None else [f"{theirs}=theirs"])
    call = client_call("support", read_body("&".join(parts).encode(), FORM))
    assert without_subscription(call.pairs) == [(name, value) for name, value, _ in said]


@pytest.mark.parametrize(
    "name",
    [
        *("GCTI_GMS_PushDeviceId", "GCTI_Chat_PushSubscribe", "gcti_gms_x", "userData.GCTI_GMS_NodeGroup"),
        *("userData[GCTI_GMS_NodeGroup", "userdata[GCTI_GMS_NodeGroup]", "userData[[GCTI_GMS_NodeGroup]]"),
        *(
            "userData[GCTI_GMS_NodeGroup][0]",
            "userData[GCTI_Chat_Push\u017fubscribe]",
            "userData[GCT\u0131_GMS_x]",
        ),
    ],
)
def test_what_gms_might_take_for_it_is_left_out_too(name: str) -> None:
    assert without_subscription([(name, "theirs"), ("text", "x")]) == [("text", "x")]


@pytest.mark.parametrize(
    "pair",
    [
        *(("userData[GCTI_Other]", "x"), ("userData[GCTI_Chat_PushSubscribed]", "x"), ("userData[gms]", "x")),
        *(
            ("message", "GCTI_GMS_PushDeviceId"),
            ("userData[note]", "userData[GCTI_GMS_x]"),
            ("userData[]", "x"),
        ),
        *(("userData[my GCTI_GMS_x]", "x"), ("userData[GCTI_Chat_AsyncMode]", "x"), ("my_GCTI_GMS_x", "x")),
    ],
)
def test_other_parameters_stay(pair: Pair) -> None:
    assert without_subscription([pair]) == [pair]


def test_ours_stands_behind_what_the_client_says(tmp_path: Path) -> None:
    said = [("nickname", "Ann"), ("userData[color]", "red"), ("nickname", "Bob")]
    assert subscribed(said, gateway(tmp_path, user_data={"from": "web"}), "device-1") == [
        *said,
        ("userData[GCTI_Chat_PushSubscribe]", "true"),
        ("userData[GCTI_GMS_NodeGroup]", "cluster"),
        ("userData[GCTI_GMS_PushDeviceId]", "device-1"),
        ("userData[GCTI_GMS_PushDeviceType]", "customhttp"),
        ("userData[GCTI_GMS_PushResend]", "true"),
        ("userData[GCTI_Chat_AsyncMode]", "true"),
        ("userData[from]", "web"),
    ]


def test_what_is_not_wanted_is_not_said_by_the_client_either(tmp_path: Path) -> None:
    plain = gateway(tmp_path, async_mode=False, push_resend=False, push_payload=True)
    said = [("userData[GCTI_Chat_AsyncMode]", "true"), ("userData[gcti_gms_pushresend]", "true")]
    names = [name for name, _ in subscribed(said, plain, "device-1")]
    assert names == [
        "userData[GCTI_Chat_PushSubscribe]",
        "userData[GCTI_GMS_NodeGroup]",
        "userData[GCTI_GMS_PushDeviceId]",
        "userData[GCTI_GMS_PushDeviceType]",
        "userData[GCTI_GMS_PushIncludePayload]",
    ]


@pytest.mark.parametrize("name", ["userData[From]", 'userData["from"]', "userData%5BFROM%5D"])
def test_what_the_gateway_sets_is_not_the_clients_to_set(tmp_path: Path, name: str) -> None:
    settings = gateway(tmp_path, user_data={"from": "web"})
    assert subscribed([(name, "me")], settings, "d") == subscribed([], settings, "d")
    assert without_subscription([(name, "me")]) == [(name, "me")], "of another call it is the client's"


def test_a_client_that_subscribes_for_itself_is_subscribed_for_us(tmp_path: Path) -> None:
    form = b"&userId=&userData%5BGCTI_GMS_PushDeviceId%5D=theirs&userData[%22GCTI_GMS_PushDeviceType%22]=gcm"
    pairs = subscribed(client_call("s/", read_body(form, FORM)).pairs, gateway(tmp_path), "ours")
    assert ("userData[GCTI_GMS_PushDeviceId]", "ours") in pairs
    assert "theirs" not in urlencode(pairs)
    assert [value for name, value in parse_qsl(urlencode(pairs)) if "DeviceType" in name] == ["customhttp"]


def test_no_two_device_ids_are_the_same() -> None:
    assert len({new_device_id() for _ in range(100)}) == 100
    assert len(new_device_id()) == 32
