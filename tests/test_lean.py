"""Importing without what libraries do at their import for other programs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import zipfile

import pytest

from asyncchatd.lean import AUTHORITIES, PLUGINS, absent, importing


def test_a_package_that_is_absent_cannot_be_imported_and_can_afterwards() -> None:
    with absent("zipapp"), pytest.raises(ImportError):
        import zipapp
    import zipapp

    assert zipapp.__name__ in sys.modules


def test_a_package_that_is_imported_already_is_there_again_afterwards() -> None:
    """As rich, which a command has that prints a table before it comes to the log."""
    with absent("zipfile"), pytest.raises(ImportError):
        import zipfile as hidden  # noqa: F401
    import zipfile as again

    assert again is zipfile


def test_a_package_that_is_hidden_already_stays_so_as_long_as_the_outer_one_says() -> None:
    with absent("zipapp"):
        with absent("zipapp"):
            pass
        with pytest.raises(ImportError):
            import zipapp as hidden  # noqa: F401
    import zipapp

    assert zipapp.__name__ in sys.modules


@pytest.mark.parametrize("variable", [AUTHORITIES, PLUGINS])
@pytest.mark.parametrize("named", [None, "/etc/authorities.pem"])
def test_what_the_operator_named_is_named_again_afterwards(
    monkeypatch: pytest.MonkeyPatch, variable: str, named: str | None
) -> None:
    monkeypatch.delenv(variable, raising=False)
    if named is not None:
        monkeypatch.setenv(variable, named)
    with importing():
        assert os.environ[variable] != named
        assert not gc.isenabled()
    assert os.environ.get(variable) == named
    assert gc.isenabled()


def test_no_package_is_asked_for_plugins_of_pydantic() -> None:
    program = (
        "from asyncchatd.lean import importing\n"
        "with importing():\n"
        "    from asyncchatd.config import Settings\n"
        "print(Settings.__name__)\n"
        "from pydantic.plugin import _loader\n"
        "print(_loader._plugins)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["Settings", "None"], done.stderr


def test_a_context_of_ours_trusts_the_authorities_of_the_system_all_the_same() -> None:
    """aiohttp's own, which was made while it was imported, has read none; one that is made afterwards reads them."""
    program = (
        "import ssl\n"
        "from asyncchatd.lean import importing\n"
        "with importing():\n"
        "    from aiohttp import connector\n"
        "from asyncchatd.config import tls_context\n"
        "counted = [each.cert_store_stats()['x509_ca'] for each in"
        " (connector._SSL_CONTEXT_VERIFIED, tls_context(), ssl.create_default_context())]\n"
        "print(*counted)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    aiohttps, ours, the_systems = map(int, done.stdout.split())
    assert (aiohttps, ours) == (0, the_systems), done.stderr
