"""What must be alike in the configurations of all who share a store."""

from __future__ import annotations

from pathlib import Path

from asyncchatd.config.agreement import alike

from .rig import settings


def test_what_must_be_alike_is_said_as_people_write_it(tmp_path: Path) -> None:
    loaded = settings(
        tmp_path,
        '[[chat_server]]\nname = "chat-2"\nhealth_url = "http://b/"\n[[chat_server]]\nname = "chat-1"\nhealth_url = "http://a/"',
        restoration="max_rate = 250",
        ping='interval = "20m"',
    )
    said = alike(loaded)
    assert said["restoration.max_rate"] == "250"
    assert said["restoration.max_in_flight"] == "100"
    assert said["ping.interval"] == "20m"
    assert said["chat_server.name"] == "chat-1, chat-2"
    assert said["consumer.name"] == "none"


def test_the_document_names_all_that_must_be_alike(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "nodes.md").read_text()
    (tmp_path / "keys").write_text("00" * 32)
    said = alike(settings(tmp_path, gateway='key_file = "keys"\nnode_group = "gms"'))
    told = {"chat_server.name": "Chat Servers and", "consumer.name": "and consumers"}
    for key in said:
        section = key.partition(".")[0]
        assert any(words in text for words in (told.get(key, f"`{key}`"), f"`[{section}]`")), (
            f"{key} is marked ALIKE"
        )


def test_of_a_key_a_digest_is_said(tmp_path: Path) -> None:
    key, other = "00" * 32, "11" * 32
    file = tmp_path / "keys"
    said = []
    for lines in (key, f"{key}\n{other}", other):
        file.write_text(lines)
        loaded = settings(tmp_path, gateway='key_file = "keys"\nnode_group = "gms"')
        said.append(alike(loaded)["gateway.key_file"])
    assert said[1] == f"{said[0]}, {said[2]}"
    assert said[0] != said[2]
    assert key[:8] not in said[0]
