"""The configuration file as a document: its bytes, and the tables in it."""

from __future__ import annotations

import errno
import re
import tomllib
from pathlib import Path

from asyncchatd.config.sources.problems import ConfigError, Problem
from asyncchatd.config.values.bounds import KIB, LARGEST_FILE


def read_toml(path: Path) -> tuple[dict[str, object], str]:
    """The tables of a configuration file, and its text. Raises `ConfigError`."""
    try:
        text = content_of(path).decode("utf-8-sig")
        return tomllib.loads(text), text
    except OSError as error:
        advice = "; try with sudo, or as the daemon's user" if isinstance(error, PermissionError) else ""
        problem = Problem("", None, f"cannot be read: {error.strerror}{advice}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = Problem("", line, "expected UTF-8 text")
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at line (\d+), column \d+\)$", message)
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        problem = Problem("", line, f"not valid TOML: {re.sub(r' [(]at .*[)]$', '', message)}")
    except RecursionError:
        problem = Problem("", None, "not valid TOML: nested too deeply")
    raise ConfigError(path, [problem]) from None


def content_of(path: Path) -> bytes:
    """What a small file holds. Raises `OSError`, also for one that has no end."""
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"it is longer than {LARGEST_FILE // KIB // KIB} MiB", str(path))
    return content
