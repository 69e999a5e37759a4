"""TLS trusts the same under every Python."""

from __future__ import annotations

import ssl

import pytest
from conftest import Certificates

from asyncchatd.config import GmsSettings, tls_context


@pytest.fixture(autouse=True)
def as_in_python_3_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default there: any certificate in the file ends a chain."""
    default = ssl.create_default_context

    def partial(*arguments: ssl.Purpose, cafile: str | None = None) -> ssl.SSLContext:
        context = default(*arguments, cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    monkeypatch.setattr(ssl, "create_default_context", partial)


@pytest.mark.parametrize("purpose", [ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH])
def test_a_chain_has_to_end_in_an_authority(purpose: ssl.Purpose) -> None:
    assert not tls_context(purpose).verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN


def test_gms_and_its_authorities_too(certificates: Certificates) -> None:
    settings = GmsSettings.model_validate(
        {"nodes": ["https://127.0.0.1:1/genesys"], "ca_file": str(certificates.server)}
    )
    assert not settings.tls().verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
