"""The settings: what they are, what is left out, and that none shows a secret."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from asyncchatd.config import settings as declared
from asyncchatd.config.loading import load
from asyncchatd.config.sections import consumers, gateway, gms, listeners
from asyncchatd.config.sections.listeners import ReceiverSettings
from asyncchatd.model import durations

from .rig import SMALL, problems, settings

NEEDED = SMALL | {"gateway": 'key_file = "gateway-keys"\nnode_group = "gms"'}
"""What a section has to have, where it is there."""

SHIPPED = Path(__file__).parents[2] / "etc" / "asyncchatd.toml"


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


def test_the_document_names_every_section() -> None:
    text = (SHIPPED.parents[1] / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `\[+(\w+)\]+` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(declared.section_models())


def test_the_shipped_file_describes_every_key() -> None:
    mentioned = _keys_of(SHIPPED.read_text(), commented_out=True)
    assert mentioned == set(declared.known_keys())


def test_what_the_shipped_file_has_commented_out_is_the_default(tmp_path: Path) -> None:
    """Keys with a default that the file does not set: uncommenting them all must change nothing."""
    (tmp_path / "gateway-keys").write_text("ab" * 32)
    server = '[[chat_server]]\nname = "a"\nhealth_url = "http://a/"'
    defaults = settings(tmp_path, server, gateway=NEEDED["gateway"], metrics="").model_dump()
    in_comments = tomllib.loads(_uncommented(SHIPPED.read_text()))
    examples = {"secrets_file", "listen", "username", "password_file", "password", "ca_file", "client_cert"}
    examples |= {"secrets", "nodes", "client_key", "headers", "app_dbid", "start_counter", "uptime_counter"}
    examples |= {"allow", "trusted_proxies", "tls_certificate", "tls_key", "tls_client_ca", "tls_ca"}
    examples |= {"token_file", "token", "client_certificate"}
    examples |= {"keys_file", "file"}
    examples |= {"origins", "services", "key_file", "apikeys_file", "node_group", "user_data", "max_rate"}
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
    nodes = [
        node
        for module in (listeners, gateway, gms, consumers, declared)
        for node in ast.parse(inspect.getsource(module)).body
    ]
    for model in [
        node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Settings")
    ]:
        for field, after in zip(model.body, [*model.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{model.name}: {ast.unparse(field)}"
                assert isinstance(after.value, ast.Constant)


def test_every_description_names_the_default() -> None:
    wrong, compared = [], 0
    for section, model in declared.section_models().items():
        body = ast.parse(inspect.getsource(model)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or (key := ast.unparse(field.target)).startswith("_"):
                continue
            default = model.model_fields[key].default
            if isinstance(default, timedelta | int | float):
                assert isinstance(after, ast.Expr)
                assert isinstance(after.value, ast.Constant)
                said = re.search(r"default\s+([\w.]*\w)", str(after.value.value))
                if said is None or not _is_named(default, said[1]):
                    wrong.append(f"{section}.{key}: {default}")
                compared += 1
    assert compared > 20
    assert not wrong


def _is_named(default: timedelta | float, said: str) -> bool:
    match default:
        case timedelta():
            return durations.parse(said) == default
        case bool():
            return said == str(default).lower()
        case _:
            sizes = (f"{default / 1024:.0f}KiB", f"{default / 1024 / 1024:.0f}MiB")
            return said in (f"{default:.0f}", *sizes)


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


def test_every_request_to_gms_carries_the_headers_and_the_password(tmp_path: Path) -> None:
    gms = 'nodes = ["http://a/"]\nusername = "us"\npassword = "pä"\nheaders = { apikey = "k" }'
    assert settings(tmp_path, gms=gms).gms.request_headers() == {
        "apikey": "k",
        "Authorization": "Basic dXM6cMOk",
    }
    assert settings(tmp_path).gms.request_headers() == {}


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
        ("store", 'url = "oracle://db"', "store.url", "or postgresql: or sqlite:"),
        ("store", 'url = "sqlite:///${NOT_SET_ANYWHERE}/a.db"', "store.url", "$NOT_SET_ANYWHERE"),
    ],
)
def test_values_that_cannot_be_meant(tmp_path: Path, section: str, keys: str, key: str, words: str) -> None:
    found = problems(tmp_path, **{section: keys})
    assert set(found) == {key}
    assert words in found[key]


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


@pytest.mark.parametrize("password", ["pa/ss#w?rd", "pa@ss", "pa:ss", "p[ss"])
def test_a_password_that_is_not_written_as_in_a_url_is_not_shown_either(
    password: str, tmp_path: Path
) -> None:
    url = f"postgresql://user:{password}@db/chats?password=o%40ther"
    loaded = settings(tmp_path, store=f'url = "{url}"')
    assert loaded.store.shown == "postgresql://[redacted]@db/chats?[redacted]"
    assert {password, "o@ther"} <= set(loaded.secret_values())
    unknown = url.replace("postgresql", "oracle")
    assert password not in problems(tmp_path, store=f'url = "{unknown}"')["store.url"]


def test_the_password_of_the_database_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "database").write_text("P4ssw0rd!\n")
    loaded = settings(tmp_path, store='url = "postgresql://user@db/chats"\npassword_file = "database"')
    assert loaded.store_password_file == tmp_path / "database"
    assert "P4ssw0rd!" in set(loaded.secret_values())
    assert "P4ssw0rd!" not in repr(loaded)


def test_settings_do_not_change(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings(tmp_path).ping.interval = timedelta(1)  # type: ignore[misc]


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
        if bare.startswith("[") and bare.endswith("]"):
            seen.clear()
            lines.append(bare)
        elif equals and key.isidentifier() and key not in seen:
            seen.add(key)
            lines.append(bare)
    return "\n".join(lines)


def _with(section: str, line: str) -> str:
    """The section's necessary keys, and one more."""
    needed = NEEDED.get(section, "")
    return line if needed.startswith(line.split(" = ")[0]) else f"{needed}\n{line}"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
