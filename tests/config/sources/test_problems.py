"""What is wrong with a configuration file, in words for the person who wrote it; no secret is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncchatd.config.loading import load
from asyncchatd.config.sources.problems import ConfigError

from ..rig import problems, write


@pytest.mark.slow
def test_all_problems_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    path.write_text(
        """
[receiver]
secrets = ["s-1"]
[gms]
nodes = [
    "http://gms-1/genesys",
    "http://GMS-1/genesys/",
]
[watcher]
intervall = "5s"
fall = 0
[restoration]
max_rate = "fast"
[[chat_server]]
name = "chat-1"
health_url = "chat-1:4001"
app_dbid = 117
[[chat_server]]
name = "chat-1"
app_dbid = "117"
[storre]
"""
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [(problem.line, problem.key, problem.nearest) for problem in caught.value.problems] == [
        (5, "gms.nodes[1]", None),
        (10, "watcher.intervall", "watcher.interval"),
        (11, "watcher.fall", None),
        (13, "restoration.max_rate", None),
        (16, "chat_server[0].health_url", None),
        (18, "chat_server[1].health_url", None),
        (19, "chat_server[1].name", None),
        (20, "chat_server[1].app_dbid", None),
        (21, "storre", "store"),
    ]
    assert f"{path}:10: watcher.intervall: unknown key; did you mean watcher.interval?" in str(caught.value)
    assert f'{path}:13: restoration.max_rate: expected a number; got "fast"' in str(caught.value)
    assert f"{path}:18: chat_server[1].health_url: required, but missing" in str(caught.value)


def test_a_key_in_the_wrong_table_is_shown_the_right_one(tmp_path: Path) -> None:
    path = write(tmp_path, receiver='secrets = ["s"]\nmax_rate = 3')
    with pytest.raises(ConfigError, match=r"did you mean restoration\.max_rate\?"):
        load(path)


def test_names_of_the_model_are_not_keys_of_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, '[[chat_servers]]\nname = "a"\n[path]\n[directory]')
    assert set(found) == {"chat_servers", "path", "directory"}


def test_an_empty_file_says_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.touch()
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert {problem.key for problem in caught.value.problems} == {"receiver.secrets", "gms.nodes"}


SECRET = "Zq7 not here"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"receiver": f'secrets = ["{SECRET}"]'},
        {"receiver": f'secrets = "{SECRET}"'},
        {"receiver": f'secrets = [["{SECRET}"]]'},
        {"receiver": f'secret = "{SECRET}"'},
        {"receiver": f'secrets = ["s"]\nlisten = "http://{SECRET}@host"'},
        {"gms": f'nodes = ["http://gms/"]\npassword = "{SECRET}"'},
        {"gms": f'nodes = ["http://gms/"]\npassword = ["{SECRET}"]'},
        {"gms": f'nodes = ["http://gms/"]\nheaders = {{ apikey = "{SECRET}\\n" }}'},
        {"gms": f'nodes = ["http://gms/"]\nheaders = "{SECRET}"'},
        {"gms": f'nodes = ["http://user:{SECRET}@gms/"]'},
        {"gms": f'nodes = ["http://gms/?apikey={SECRET}"]'},
        {"store": f'url = "oracle://user:{SECRET}@db/chats"'},
        {"store": f'url = "oracle://db/chats?password={SECRET}"'},
    ],
)
def test_no_problem_repeats_a_secret(tmp_path: Path, sections: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, **sections))
    told = str(caught.value) + repr(caught.value) + repr(caught.value.problems)
    assert "Zq7" not in told
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_table_given_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    path.write_text('receiver = "x"\ngms = 5\nchat_server = { name = "a" }\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = {problem.key: problem.message for problem in caught.value.problems}
    assert set(found) == {"receiver", "gms", "chat_server"}
    assert found["receiver"].startswith("expected a table")
    assert found["chat_server"].startswith("expected a list")


def test_a_list_with_nothing_right_in_it_is_not_called_empty_too(tmp_path: Path) -> None:
    assert list(problems(tmp_path, gms='nodes = ["gms-1:8080"]')) == ["gms.nodes[0]"]
    assert list(problems(tmp_path, gms='nodes = ["gms-1:8080", "http://a/", 7]')) == [
        "gms.nodes[0]",
        "gms.nodes[2]",
    ]
    assert "at least one" in problems(tmp_path, gms="nodes = []")["gms.nodes"]
