"""Credentials of systemd: where they lie, and what is no name of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncchatd.config.sources.credentials import credential


def test_credentials_are_files_of_the_directory_systemd_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match="CREDENTIALS_DIRECTORY is not set"):
        credential("push-secrets")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert credential("push-secrets") == tmp_path / "push-secrets"
    for name in ("", "..", "../shadow", "/etc/shadow"):
        with pytest.raises(LookupError, match="not the name of a credential"):
            credential(name)
