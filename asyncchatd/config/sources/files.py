"""Files that the configuration names, and the secrets in them."""

from __future__ import annotations

import base64
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    SecretStr,
    ValidationInfo,
)

from asyncchatd.config.sources.credentials import credential
from asyncchatd.config.sources.document import content_of
from asyncchatd.config.values.rights import ORDINARY_RIGHTS, Grant, Rights


def expanded(value: str) -> str:
    """Put the environment in for each `${NAME}`, the whole value with its colons. Only where systemd lists
    directories, in `${STATE_DIRECTORY}` and the others of that kind, it is the first one. Nothing else begins
    with `${`: what a shell makes of `${NAME:-word}` is an error here, not a file of that name."""

    def put_in(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            raise ValueError(
                f"expected ${{NAME}}, with nothing but a name in the braces, in place of {match[0]}"
            )
        found = os.environ.get(name, "")
        if name in _LISTS_OF_DIRECTORIES:
            found = found.split(":")[0]
        if not found:
            usual = _LISTS_OF_DIRECTORIES.get(name)
            raise ValueError(
                f"expected ${name} in the environment, where it is not set (systemd sets it for a unit; "
                f"by hand give it yourself{f', {name}={usual}' if usual else ''})"
            )
        return found

    return re.sub(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\}|[^}]{0,20}\}?)", put_in, value)


_LISTS_OF_DIRECTORIES = {
    "STATE_DIRECTORY": "/var/lib/asyncchatd",
    "RUNTIME_DIRECTORY": "/run/asyncchatd",
    "CACHE_DIRECTORY": "/var/cache/asyncchatd",
    "LOGS_DIRECTORY": "/var/log/asyncchatd",
    "CONFIGURATION_DIRECTORY": "/etc/asyncchatd",
}
"""systemd.exec(5): a colon stands between two directories of one unit. And which it is for the unit of asyncchatd."""


def _file(value: object, info: ValidationInfo) -> Path | None:
    """An existing readable file: a path, relative to the configuration file, or `credential:NAME`."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError('expected the path of a file, or "credential:NAME"')
    context = info.context or {}
    try:
        text = expanded(str(value))
        name = text.removeprefix("credential:")
        path = credential(name) if name != text else Path(context.get("directory", "."), text)
        if path.exists() and not path.is_file():  # looked at before it is opened: a pipe may wait for ever
            raise OSError(errno.EINVAL, "it is a directory, a device or a pipe")
        with path.open("rb"):
            return path
    except (LookupError, OSError, ValueError) as error:
        if context.get("as_client"):
            return Path(str(value))
        raise _no_input(error) from None


def _output_file(value: object, info: ValidationInfo) -> Path | None:
    """A file to write to, relative to the configuration file. It need not be there, its directory must."""
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected the path of a file")
    context = info.context or {}
    try:
        path = Path(context.get("directory", "."), expanded(str(value)))
    except ValueError:
        if context.get("as_client"):
            return Path(str(value))
        raise
    if not context.get("as_client"):
        if path.exists() and not path.is_file():
            raise ValueError("expected a file, not a directory, a device or a pipe")
        if not path.parent.is_dir():
            raise ValueError(f"expected a file in a directory that is there; {path.parent} is none")
    return path


OutputFile = Annotated[Path | None, BeforeValidator(_output_file)]
"""A file to write to: a path, relative to the configuration file."""


def _no_input(error: Exception) -> ValueError:
    """Why a file cannot be read, in words."""
    match error:
        case LookupError():
            return ValueError(f"this credential cannot be found: {error.args[0]}")
        case OSError():
            return ValueError(f"this file cannot be read: {error.strerror}")
    return ValueError(f"this file cannot be read: {error}")


InputFile = Annotated[Path | None, BeforeValidator(_file)]
"""A file that is there and can be read: a path, relative to the configuration file, or `credential:NAME`."""


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file of secrets, and what it held when the configuration was read."""

    path: Path
    values: tuple[SecretStr, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of tokens of the control API, and what it held when the configuration was read."""

    path: Path
    grants: tuple[Grant, ...] = field(repr=False)


def read_secrets(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one push secret on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    return _secrets_of(path, _push_secret, "secret")


def read_tokens(value: object, info: ValidationInfo) -> TokenFile | None:
    """A file with one token on each line, behind it its rights. For a command that may not read the daemon's file it
    holds none."""
    if isinstance(value, TokenFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, TokenFile) else None
    if (info.context or {}).get("as_client") and not os.access(path, os.R_OK):
        return TokenFile(path, ())
    return TokenFile(path, tuple(_grants_of(_lines_of(path, "token"))))


def _grants_of(lines: Iterable[tuple[int, str]]) -> Iterator[Grant]:
    first: dict[str, tuple[int, Rights]] = {}
    for number, line in lines:
        token, *words = line.split()
        with _in_line(number):
            checked = _token(SecretStr(token))
            rights = Rights.parse(words) if words else ORDINARY_RIGHTS
            before, known = first.setdefault(token, (number, rights))
            if known != rights:
                raise ValueError(
                    f"expected the same rights as in line {before}, where this token stands already"
                )
        if before == number:
            yield Grant(checked, rights)


def _secrets_of(path: Path, checked: Callable[[SecretStr], SecretStr], what: str) -> SecretFile:
    secrets = []
    for number, line in _lines_of(path, what):
        with _in_line(number):
            secrets.append(checked(SecretStr(line)))
    return SecretFile(path, tuple(secrets))


def _lines_of(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines that are neither empty nor comments, with their numbers. Raises `ValueError` when there are none."""
    lines = [
        (number, stripped)
        for number, line in enumerate(_text_of(path).splitlines(), start=1)
        if (stripped := line.strip()) and not stripped.startswith("#")
    ]
    if not lines:
        raise ValueError(f"expected at least one {what} in this file, one on each line")
    return lines


@contextmanager
def _in_line(number: int) -> Iterator[None]:
    """A problem in a line of a file is told with the line's number, as the line itself is not shown."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"line {number} of this file: {error}") from None


def read_password(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file whose only line is a password; its line end does not belong to it."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    password = _text_of(path).rstrip("\r\n")
    if not password or "\n" in password:
        raise ValueError("expected this file to hold the password on its only line")
    return SecretFile(path, (SecretStr(password),))


def read_store_keys(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one store key on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    return _secrets_of(path, _store_key, "key")


def read_apikeys(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one apikey of chat clients on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    return _secrets_of(path, _apikey, "apikey")


def _apikey(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", value.get_secret_value()):
        raise ValueError(
            "expected an apikey of ASCII without blanks, 200 characters at most, as it is sent in a header"
        )
    return value


def read_webhook_secrets(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one webhook secret on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    return _secrets_of(path, _webhook_secret, "secret")


def _webhook_secret(value: SecretStr) -> SecretStr:
    webhook_key(value.get_secret_value())
    return value


def webhook_key(text: str) -> bytes:
    """24 to 64 bytes, in base64 behind `whsec_`, as Standard Webhooks has them."""
    try:
        key = (
            base64.b64decode(text.removeprefix("whsec_"), validate=True) if text.startswith("whsec_") else b""
        )
    except ValueError:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ValueError(
            'expected "whsec_" and 24 to 64 bytes in base64, such as `echo whsec_$(openssl rand -base64 32)` makes'
        )
    return key


def store_key(text: str) -> bytes:
    """32 bytes, in base64 or as hexadecimal digits."""
    try:
        if len(text) == 64:
            return bytes.fromhex(text)
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError("expected a key of 256 bits, such as `openssl rand -base64 32` makes")
    return key


def keys_in(path: Path) -> tuple[bytes, ...]:
    """The keys in a file such as `store.keys_file` names. Raises `ValueError`."""
    return tuple(store_key(key.get_secret_value()) for key in _secrets_of(path, _store_key, "key").values)


def _text_of(path: Path) -> str:
    try:
        return content_of(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("expected this file to be UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"this file cannot be read: {error.strerror}") from None


def _store_key(value: SecretStr) -> SecretStr:
    store_key(value.get_secret_value())
    return value


def _push_secret(value: SecretStr) -> SecretStr:
    secret = value.get_secret_value()
    # "." and ".." are safe characters too, but every HTTP client removes such path segments.
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", secret) or secret in {".", ".."}:
        raise ValueError("expected a secret of letters, digits and - . _ ~, as it is part of an address")
    return value


PushSecret = Annotated[SecretStr, AfterValidator(_push_secret)]


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", value.get_secret_value()):
        raise ValueError("expected a token of letters, digits and - . _ ~ + /, as it is sent in a header")
    return value


Token = Annotated[SecretStr, AfterValidator(_token)]
