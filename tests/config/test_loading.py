"""Reading the configuration file: whatever stands in it, one error says all that is wrong."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.config import loading
from asyncchatd.config import settings as declared
from asyncchatd.config.loading import load
from asyncchatd.config.settings import Settings
from asyncchatd.config.sources.problems import ConfigError, Problem

from .rig import problems, write


def test_both_ends_cannot_listen_on_one_address(tmp_path: Path) -> None:
    found = problems(tmp_path, control='listen = "127.0.0.1:8091"')
    assert "another address" in found["control.listen"]


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


def test_commands_need_only_the_control_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's shell has neither the daemon's credentials nor its state directory."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = write(tmp_path, receiver='secrets_file = "credential:push"', control='listen = "127.0.0.1:9"')
    assert loading.load_control(path).listen.port == 9
    path = write(tmp_path, control='lissten = ":9"')
    with pytest.raises(ConfigError, match=r"control\.lissten: unknown key; did you mean control\.listen\?"):
        loading.load_control(path)


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
