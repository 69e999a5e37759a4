"""Files that the configuration names, and the secrets in them."""

from __future__ import annotations

import base64
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    SecretStr,
    ValidationInfo,
)

from asyncchatd.config.credentials import credential
from asyncchatd.config.kinds import KIB

LARGEST_FILE = 16 * KIB * KIB
"""Bytes of a configuration, or of a file of secrets: one that is longer, or endless as /dev/zero, is none."""


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
            raise ValueError(
                f"expected ${name} in the environment, where it is not set (systemd sets it for a unit; "
                "when started by hand, set it yourself)"
            )
        return found

    return re.sub(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\}|[^}]{0,20}\}?)", put_in, value)


_LISTS_OF_DIRECTORIES = {
    f"{kind}_DIRECTORY" for kind in ("STATE", "RUNTIME", "CACHE", "LOGS", "CONFIGURATION")
}
"""systemd.exec(5): a colon stands between two directories of one unit."""


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


def read_secrets(value: object, info: ValidationInfo) -> SecretFile | None:
    """A file with one push secret on each line; empty lines and `#` comments do not count."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    return _lines_of(path, _push_secret, "secret")


def read_tokens(value: object, info: ValidationInfo) -> SecretFile | None:
    """The same with tokens. For a command that may not read the daemon's file it holds none."""
    if isinstance(value, SecretFile) or (path := _file(value, info)) is None:
        return value if isinstance(value, SecretFile) else None
    if (info.context or {}).get("as_client") and not os.access(path, os.R_OK):
        return SecretFile(path, ())
    return _lines_of(path, _token, "token")


def _lines_of(path: Path, checked: Callable[[SecretStr], SecretStr], what: str) -> SecretFile:
    secrets = []
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        if (secret := line.strip()) and not secret.startswith("#"):
            try:
                secrets.append(checked(SecretStr(secret)))
            except ValueError as error:
                raise ValueError(f"line {number} of this file: {error}") from None
    if not secrets:
        raise ValueError(f"expected at least one {what} in this file, one on each line")
    return SecretFile(path, tuple(secrets))


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
    keys = []
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        if (key := line.strip()) and not key.startswith("#"):
            try:
                store_key(key)
            except ValueError as error:
                raise ValueError(f"line {number} of this file: {error}") from None
            keys.append(SecretStr(key))
    if not keys:
        raise ValueError("expected at least one key in this file, one on each line")
    return SecretFile(path, tuple(keys))


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


def _text_of(path: Path) -> str:
    try:
        return content_of(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("expected this file to be UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"this file cannot be read: {error.strerror}") from None


def content_of(path: Path) -> bytes:
    """What a small file holds. Raises `OSError`, also for one that has no end."""
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"it is longer than {LARGEST_FILE // KIB // KIB} MiB", str(path))
    return content


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
