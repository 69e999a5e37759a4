"""The configuration file: what it accepts, and what it says of everything it does not."""

from __future__ import annotations

import ast
import base64
import contextlib
import inspect
import os
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncchatd.config import listeners, loading
from asyncchatd.config import settings as declared
from asyncchatd.config.kinds import Listen
from asyncchatd.config.listeners import ReceiverSettings
from asyncchatd.config.loading import load
from asyncchatd.config.problems import ConfigError, Problem
from asyncchatd.config.settings import Settings

SHIPPED = Path(__file__).parents[2] / "etc" / "asyncchatd.toml"
SMALL = {"receiver": 'secrets = ["s-1"]', "gms": 'nodes = ["http://gms-1:8080/genesys"]'}


def write(directory: Path, more: str = "", **sections: str) -> Path:
    """The smallest valid file, with sections added or replaced, in a directory of its own."""
    tables = "\n".join(f"[{name}]\n{keys}" for name, keys in (SMALL | sections).items())
    path = directory / "asyncchatd.toml"
    path.write_text(f"{tables}\n{more}\n")
    return path


def settings(directory: Path, more: str = "", **sections: str) -> Settings:
    return load(write(directory, more, **sections))


def problems(directory: Path, more: str = "", **sections: str) -> dict[str, str]:
    """What is wrong, by key."""
    with pytest.raises(ConfigError) as caught:
        load(write(directory, more, **sections))
    return {problem.key: problem.message for problem in caught.value.problems}


def test_the_shipped_file_is_valid_and_says_what_the_design_says() -> None:
    shipped = load(SHIPPED)
    assert str(shipped.receiver.listen) == "127.0.0.1:8091"
    assert [secret.get_secret_value() for secret in shipped.receiver.secrets] == ["change-me"]
    assert str(shipped.control.listen) == "127.0.0.1:8092"
    assert shipped.gms.nodes == ("http://127.0.0.1:8080/genesys",)
    assert shipped.gms.service == "customer-support"
    assert shipped.gms.timeout == timedelta(seconds=10)
    assert shipped.store.url == "sqlite:///asyncchatd.db"
    assert shipped.ping.interval == timedelta(minutes=30)
    assert (shipped.restoration.max_rate, shipped.restoration.max_in_flight) == (200.0, 100)
    assert shipped.watcher.fast_interval == timedelta(seconds=1.25)
    assert [server.name for server in shipped.chat_servers] == ["chat-1"]
    assert shipped.directory == SHIPPED.parent.resolve()


def test_the_shipped_file_describes_every_key() -> None:
    mentioned = _keys_of(SHIPPED.read_text(), commented_out=True)
    assert mentioned == set(declared.known_keys())


def test_what_the_shipped_file_has_commented_out_is_the_default(tmp_path: Path) -> None:
    """Keys with a default that the file does not set: uncommenting them all must change nothing."""
    defaults = settings(tmp_path, '[[chat_server]]\nname = "a"\nhealth_url = "http://a/"').model_dump()
    in_comments = tomllib.loads(_uncommented(SHIPPED.read_text()))
    examples = {"secrets_file", "listen", "username", "password_file", "password", "ca_file", "client_cert"}
    examples |= {"secrets", "nodes", "client_key", "headers", "app_dbid", "start_counter", "uptime_counter"}
    examples |= {"allow", "trusted_proxies", "tls_certificate", "tls_key", "tls_client_ca", "tls_ca"}
    examples |= {"token_file", "token", "client_certificate"}
    examples |= {"keys_file"}
    compared = 0
    for section, keys in in_comments.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            if key not in examples:
                field = getattr(
                    settings(tmp_path, **{section: _with(section, f"{key} = {_toml(value)}")}), section
                )
                assert getattr(field, key) == defaults[section][key], f"{section}.{key}"
                compared += 1
    assert compared >= 15


def test_every_setting_is_followed_by_its_description() -> None:
    nodes = [node for module in (listeners, declared) for node in ast.parse(inspect.getsource(module)).body]
    for model in [
        node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
    ]:
        for field, after in zip(model.body, [*model.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{model.name}: {ast.unparse(field)}"
                assert isinstance(after.value, ast.Constant)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("6s", 6), ("30m", 1800), ("1.5h", 5400), ("2d", 172800), ("0.001ms", 0.000001)],
)
def test_durations_have_units(tmp_path: Path, text: str, seconds: float) -> None:
    assert settings(tmp_path, ping=f'interval = "{text}"').ping.interval == timedelta(seconds=seconds)


def test_a_duration_without_unit_is_told_to_get_one(tmp_path: Path) -> None:
    message = problems(tmp_path, ping="interval = 30")["ping.interval"]
    assert "duration with its unit" in message
    assert message.endswith("got 30")


@pytest.mark.parametrize(
    "text", ["", "5", "5 minutes", "-5s", "0s", "0.0000001ms", "1e3s", "nan", "9" * 400 + "d", "36501d"]
)
def test_what_is_no_duration_is_refused_with_what_came(tmp_path: Path, text: str) -> None:
    message = problems(tmp_path, ping=f'interval = "{text}"')["ping.interval"]
    assert message.startswith("expected a duration")
    assert f'got "{text[:20]}' in message


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("127.0.0.1:8091", "127.0.0.1", 8091, None),
        ("[::1]:8091", "::1", 8091, None),
        ("gms-facing.example:80", "gms-facing.example", 80, None),
        (":8091", None, 8091, None),
        ("127.0.0.1:0", "127.0.0.1", 0, None),
        ("unix:/run/asyncchatd/control.sock", None, None, "/run/asyncchatd/control.sock"),
    ],
)
def test_addresses_to_listen_on(text: str, host: str | None, port: int | None, path: str | None) -> None:
    listen = Listen.parse(text)
    assert (listen.host, listen.port, listen.path) == (host, port, path)
    assert str(listen) == text


@pytest.mark.parametrize(
    "text", ["8091", "host", "host:", "host:99999", "::1:8091", "unix:relative", "unix:/" + "x" * 120]
)
def test_what_is_no_address_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected" in problems(tmp_path, control=f'listen = "{text}"')["control.listen"]


def test_both_ends_cannot_listen_on_one_address(tmp_path: Path) -> None:
    found = problems(tmp_path, control='listen = "127.0.0.1:8091"')
    assert "another address" in found["control.listen"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ('"256KiB"', 262144), ('"1MiB"', 1048576), ('"7B"', 7)]
)
def test_sizes_are_bytes_or_have_a_unit(tmp_path: Path, text: str, size: int) -> None:
    assert settings(tmp_path, receiver=f'secrets = ["s"]\nmax_body = {text}').receiver.max_body == size


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
    path = write(tmp_path, receiver='secrets = ["s"]\nmax_in_flight = 3')
    with pytest.raises(ConfigError, match=r"did you mean restoration\.max_in_flight\?"):
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


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"[receiver]\nlisten = \n", 2, "not valid TOML"),
        (b"[receiver\n", 1, "not valid TOML"),
        (b'x = """', 1, "not valid TOML"),
        (b"a = 1\nb = '\xff'\n", 2, "UTF-8"),
    ],
)
def test_what_is_no_toml_is_one_problem_with_its_line(
    tmp_path: Path, content: bytes, line: int, words: str
) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    [problem] = caught.value.problems
    assert (problem.key, problem.line) == ("", line)
    assert words in problem.message


def test_a_missing_file_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load(tmp_path / "absent.toml")


def test_lines_are_found_in_spite_of_quoted_keys_dotted_keys_and_long_strings(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    path.write_text(
        'receiver.secrets = ["s"]\n'
        "[gms]\n"
        'nodes = ["http://a/"]\n'
        'service = """\n'
        "headers = 1\n"
        'timeout = 2"""\n'
        '"headers" = 3\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [(problem.key, problem.line) for problem in caught.value.problems] == [
        ("gms.service", 4),
        ("gms.headers", 7),
    ]


def test_secrets_come_from_the_file_and_from_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "push-secrets").write_text("# the new one\nnew-secret\n\n  old-secret  \n")
    receiver = settings(tmp_path, receiver='secrets = ["inline"]\nsecrets_file = "push-secrets"').receiver
    assert [secret.get_secret_value() for secret in receiver.secrets] == [
        "inline",
        "new-secret",
        "old-secret",
    ]


def test_a_credential_is_found_where_systemd_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "push").write_text("from-systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    receiver = settings(tmp_path, receiver='secrets_file = "credential:push"').receiver
    assert [secret.get_secret_value() for secret in receiver.secrets] == ["from-systemd"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# none\n", "at least one secret"),
        ("ok\nwith space\n", "line 2"),
        ("..\n", "line 1"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_secrets_that_is_no_use_says_why(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "push-secrets").write_text(content)
    found = problems(tmp_path, receiver='secrets_file = "push-secrets"')
    assert set(found) == {"receiver.secrets_file"}
    assert words in found["receiver.secrets_file"]


def test_store_keys_are_read_in_base64_and_in_hexadecimal_the_first_one_first(tmp_path: Path) -> None:
    (tmp_path / "store-keys").write_text(
        f"# the new one\n{'ab' * 32}\n\n  {'A' * 43}=  \n{'_-' * 21}8=\n",
    )
    loaded = settings(tmp_path, store='keys_file = "store-keys"')
    assert loaded.store_keys == (b"\xab" * 32, bytes(32), base64.urlsafe_b64decode("_-" * 21 + "8="))
    assert {"ab" * 32, "A" * 43 + "="} <= set(loaded.secret_values())
    assert "abab" not in repr(loaded)
    assert settings(tmp_path).store_keys == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# none\n", "at least one key"),
        (f"{'ab' * 32}\n{'ab' * 16}\n", "line 2"),
        ("correct horse battery staple\n", "openssl rand -base64 32"),
        ("x" * 64 + "\n", "256 bits"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_store_keys_that_is_no_use_says_why(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "store-keys").write_text(content)
    found = problems(tmp_path, store='keys_file = "store-keys"')
    assert set(found) == {"store.keys_file"}
    assert words in found["store.keys_file"]
    assert not any(line in found["store.keys_file"] for line in (content or "").split("\n") if line)


def test_without_systemd_a_credential_says_how_to_get_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    found = problems(tmp_path, receiver='secrets_file = "credential:push"')
    assert "$CREDENTIALS_DIRECTORY is not set" in found["receiver.secrets_file"]


def test_commands_need_only_the_control_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's shell has neither the daemon's credentials nor its state directory."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = write(tmp_path, receiver='secrets_file = "credential:push"', control='listen = "127.0.0.1:9"')
    assert loading.load_control(path).listen.port == 9
    path = write(tmp_path, control='lissten = ":9"')
    with pytest.raises(ConfigError, match=r"control\.lissten: unknown key; did you mean control\.listen\?"):
        loading.load_control(path)


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
        {"store": f'url = "postgres://user:{SECRET}@db/chats"'},
        {"store": f'url = "postgres://db/chats?password={SECRET}"'},
    ],
)
def test_no_problem_repeats_a_secret(tmp_path: Path, sections: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, **sections))
    told = str(caught.value) + repr(caught.value) + repr(caught.value.problems)
    assert "Zq7" not in told
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_settings_show_no_secret(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("P4ssw0rd!\n")
    loaded = settings(
        tmp_path,
        receiver='secrets = ["push-secret-1"]',
        gms='nodes = ["http://gms/"]\nusername = "u"\npassword_file = "password"\n'
        'headers = { apikey = "KEY-1" }',
    )
    shown = repr(loaded) + str(loaded) + loaded.model_dump_json()
    assert not [secret for secret in loaded.secret_values() if secret in shown]
    assert {"push-secret-1", "P4ssw0rd!", "KEY-1"} < set(loaded.secret_values())


def test_a_model_made_in_code_shows_no_secret_when_it_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        ReceiverSettings.model_validate({"secrets": ["plain secret text"]})
    assert "plain" not in str(caught.value)


@pytest.mark.parametrize("character", ["/", "%", "?", " ", "ä", ":", "+"])
def test_a_push_secret_must_fit_into_an_address(tmp_path: Path, character: str) -> None:
    found = problems(tmp_path, receiver=f'secrets = ["ok", "not{character}ok"]')
    assert "letters, digits" in found["receiver.secrets[1]"]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("gms:8080", "expected an address"),
        ("ftp://gms/", "expected an address"),
        ("http://", "expected an address"),
        ("http://gms:99999/", "expected an address"),
        ("http://gms/a b", "expected an address"),
        ("http://u:p@gms/", "without user name"),
        ("http://gms/?a=b", "without ?query"),
        ("http://gms/#a", "without #fragment"),
    ],
)
def test_a_node_is_a_plain_base_address(tmp_path: Path, node: str, words: str) -> None:
    found = problems(tmp_path, gms=f'nodes = ["http://gms-1/", "{node}"]')
    assert words in found["gms.nodes[1]"]


def test_nodes_lose_their_trailing_slash(tmp_path: Path) -> None:
    loaded = settings(tmp_path, gms='nodes = ["http://gms-1:8080/genesys/", "https://gms-2"]')
    assert loaded.gms.nodes == ("http://gms-1:8080/genesys", "https://gms-2")


def test_every_request_to_gms_carries_the_headers_and_the_password(tmp_path: Path) -> None:
    gms = 'nodes = ["http://a/"]\nusername = "us"\npassword = "pä"\nheaders = { apikey = "k" }'
    assert settings(tmp_path, gms=gms).gms.request_headers() == {
        "apikey": "k",
        "Authorization": "Basic dXM6cMOk",
    }
    assert settings(tmp_path).gms.request_headers() == {}


@pytest.mark.parametrize("service", ["", "a/b", "a b", "..", "a?b"])
def test_a_service_is_one_segment_of_a_path(tmp_path: Path, service: str) -> None:
    assert "gms.service" in problems(tmp_path, gms=f'nodes = ["http://a/"]\nservice = "{service}"')


@pytest.mark.parametrize(
    ("section", "keys", "key", "words"),
    [
        ("gms", 'nodes = ["http://a/"]\nrest = "40s"', "gms.rest_max", "at least gms.rest, which is 40s"),
        ("gms", 'nodes = ["http://a/"]\npassword = "p"', "gms.password", "gms.username together"),
        ("gms", 'nodes = ["http://a/"]\nclient_key = "asyncchatd.toml"', "gms.client_key", "gms.client_cert"),
        ("gms", 'nodes = ["http://a/"]\nheaders = { Host = "x" }', "gms.headers", "no Host header"),
        (
            "gms",
            'nodes = ["http://a/"]\nheaders = { Accept-Encoding = "br" }',
            "gms.headers",
            "no Accept-Encoding header",
        ),
        ("gms", 'nodes = ["http://a/"]\nheaders = { Expect = "x" }', "gms.headers", "no Expect header"),
        ("gms", 'nodes = ["http://a/"]\nheaders = { "a b" = "x" }', "gms.headers", "names of HTTP headers"),
        ("gms", "nodes = []", "gms.nodes", "at least one"),
        ("gms", 'nodes = ["http://a/"]\nusername = "a:b"', "gms.username", "without a colon"),
        (
            "gms",
            'nodes = ["http://a/"]\nusername = "a"\nheaders = { authorization = "x" }',
            "gms.headers",
            "Authorization header or gms.username",
        ),
        ("restoration", 'backoff = "1m"', "restoration.backoff_max", "at least restoration.backoff"),
        ("restoration", "max_rate = 0", "restoration.max_rate", "above 0"),
        ("restoration", "max_rate = inf", "restoration.max_rate", "expected a number"),
        ("restoration", "max_rate = true", "restoration.max_rate", "expected a number"),
        ("restoration", "max_in_flight = 1.5", "restoration.max_in_flight", "whole number"),
        ("watcher", 'fast_interval = "6s"', "watcher.fast_interval", "at most watcher.interval, which is 5s"),
        ("watcher", "interval = 5", "watcher.interval", "with its unit"),
        ("log", 'level = "loud"', "log.level", "expected 'debug', 'info'"),
        ("store", 'url = "sqlite://file.db"', "store.url", "sqlite:///file.db"),
        ("store", 'url = "oracle://db"', "store.url", "memory: or sqlite:"),
        ("store", 'url = "sqlite:///${NOT_SET_ANYWHERE}/a.db"', "store.url", "$NOT_SET_ANYWHERE"),
    ],
)
def test_values_that_cannot_be_meant(tmp_path: Path, section: str, keys: str, key: str, words: str) -> None:
    found = problems(tmp_path, **{section: keys})
    assert set(found) == {key}
    assert words in found[key]


def test_a_table_given_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "asyncchatd.toml"
    path.write_text('receiver = "x"\ngms = 5\nchat_server = { name = "a" }\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = {problem.key: problem.message for problem in caught.value.problems}
    assert set(found) == {"receiver", "gms", "chat_server"}
    assert found["receiver"].startswith("expected a table")
    assert found["chat_server"].startswith("expected a list")


def test_the_dbid_may_be_written_as_number_or_text(tmp_path: Path) -> None:
    servers = "".join(
        f'[[chat_server]]\nname = "chat-{index}"\nhealth_url = "http://h:{index}00/"\napp_dbid = {dbid}\n'
        for index, dbid in enumerate(["117", '"118"', "119.0"], start=1)
    )
    assert [server.app_dbid for server in settings(tmp_path, servers).chat_servers] == ["117", "118", "119"]


@pytest.mark.slow
def test_the_store_lies_beside_the_file_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/asyncchatd:/var/lib/other")
    monkeypatch.chdir("/")
    relative = settings(tmp_path)
    assert relative.store_url == f"sqlite:///{tmp_path.resolve()}/asyncchatd.db"
    assert relative.store.file(relative.directory) == tmp_path.resolve() / "asyncchatd.db"
    absolute = settings(tmp_path, store='url = "sqlite:////srv/chats.db"')
    assert absolute.store_url == "sqlite:////srv/chats.db"
    state = settings(tmp_path, store='url = "sqlite:///${STATE_DIRECTORY}/chats.db"')
    assert state.store_url == "sqlite:////var/lib/asyncchatd/chats.db"
    assert settings(tmp_path, store='url = "memory:"').store_url == "memory:"


def test_what_the_environment_says_is_put_in_with_its_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOM", "/srv/10:30:00")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    for url, file in {
        "${ROOM}/a.db": "/srv/10:30:00/a.db",
        "${RUNTIME_DIRECTORY}/a.db": "/run/one/a.db",
    }.items():
        assert settings(tmp_path, store=f'url = "sqlite:///{url}"').store_url == f"sqlite:///{file}"
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "secrets").write_text("a-secret-of-some-length\n")
    monkeypatch.setenv("PLACE", f"{tmp_path}/a:b")
    receiver = settings(tmp_path, receiver='secrets_file = "${PLACE}/secrets"').receiver
    assert [secret.get_secret_value() for secret in receiver.secrets] == ["a-secret-of-some-length"]


@pytest.mark.parametrize(
    "form", ["${ROOM:-x}", "${ROOM:0:1}", "${}", "${ROOM", "${1}", "${a b}", "${credential:x}"]
)
def test_nothing_but_a_name_stands_in_the_braces(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOM", "/srv")
    assert "expected ${NAME}" in problems(tmp_path, store=f'url = "sqlite:///{form}/a.db"')["store.url"]
    assert (
        "expected ${NAME}"
        in problems(tmp_path, gms=f'nodes = ["http://h/"]\nca_file = "{form}/x"')["gms.ca_file"]
    )


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_a_file_of_the_configuration_is_a_file(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    assert (
        "cannot be read" in problems(tmp_path, receiver=f'secrets_file = "{path}"')["receiver.secrets_file"]
    )


def test_the_scheme_of_an_installed_store_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "chatstore-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: chatstore\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[asyncchatd.stores]\npostgres = chatstore:open\n")
    monkeypatch.syspath_prepend(package.parent)
    loaded = settings(tmp_path, store='url = "postgres://user:p%40ss@db/chats?sslmode=on"')
    assert loaded.store.scheme == "postgres"
    assert loaded.store_url == "postgres://user:p%40ss@db/chats?sslmode=on"
    assert loaded.store.shown == "postgres://[redacted]@db/chats?[redacted]"
    assert {"p%40ss", "p@ss"} <= set(loaded.secret_values())
    assert "p%40ss" not in repr(loaded)


def test_settings_do_not_change(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings(tmp_path).ping.interval = timedelta(1)  # type: ignore[misc]


@pytest.mark.slow
@given(st.text(max_size=300))
def test_no_text_makes_loading_raise_anything_else(text: str) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp"), f"asyncchatd-{os.getpid()}.toml")
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        with pytest.raises(ConfigError) as caught:
            load(path)
    finally:
        path.unlink()
    assert all(isinstance(problem, Problem) for problem in caught.value.problems)


_TOML_VALUES = st.recursive(
    st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.sampled_from(["5s", "http://a/", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "name"]), inner, max_size=2)
    ),
    max_leaves=3,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(declared.known_keys()), _TOML_VALUES, max_size=8))
def test_no_values_make_loading_raise_anything_else(values: dict[str, object]) -> None:
    tree: dict[str, object] = {}
    for key, value in values.items():
        table, name = key.split(".")
        section = tree.setdefault(table, [{}] if table == "chat_server" else {})
        entry = section[0] if isinstance(section, list) else section
        assert isinstance(entry, dict)
        entry[name] = value
    with contextlib.suppress(ConfigError):
        assert isinstance(loading._validated(Path("x.toml"), tree, ""), Settings)


def _keys_of(text: str, commented_out: bool) -> set[str]:
    data = tomllib.loads(_uncommented(text) if commented_out else text)
    tables = {name: table[0] if isinstance(table, list) else table for name, table in data.items()}
    return {f"{name}.{key}" for name, table in tables.items() for key in table}


def _uncommented(text: str) -> str:
    """The file with its commented-out keys taken in; of a key that is there twice, the first."""
    lines: list[str] = []
    seen: set[str] = set()
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        key, equals, _ = bare.partition(" = ")
        if line.startswith("["):
            seen.clear()
            lines.append(line)
        elif equals and key.isidentifier() and key not in seen:
            seen.add(key)
            lines.append(bare)
    return "\n".join(lines)


def _with(section: str, line: str) -> str:
    """The section's necessary keys, and one more."""
    needed = SMALL.get(section, "")
    return line if needed.startswith(line.split(" = ")[0]) else f"{needed}\n{line}"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
