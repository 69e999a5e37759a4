"""The files that the URL of a PostgreSQL store names: for TLS, and for passwords.

What is wrong with one the driver says without its name, or not at all: it leaves a file of passwords aside that
others may read, and the server then asks for a password that nobody has.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from asyncchatd.lacks import system_words

FILES = frozenset({"passfile", "sslrootcert", "sslcert", "sslkey", "sslcrl"})
"""The parameters that name them."""

OF_ENVIRONMENT = "PGPASSFILE"
"""The variable that names a file of passwords where the URL does not. It may be there for others, so that it is looked
at only once the server wants a password."""

WITHOUT_TLS = "disable"
CHECKED = ("require", "verify-ca", "verify-full")
"""Modes in which the driver looks whose the certificate of the server is, where it has an authority."""


@dataclass(frozen=True)
class NamedFiles:
    """The parameters of a URL, as far as they name files; `named` by the names of the parameters."""

    named: Mapping[str, str]
    sslmode: str
    sslpassword: str = ""
    """Of the key."""

    def trouble(self) -> str | None:
        """What is wrong with one of those that the driver uses: the parameter, the file, and why."""
        return self.of_tls() or self.of_passwords()

    def of_tls(self) -> str | None:
        """What is wrong with one of the files for TLS."""
        if self.sslmode == WITHOUT_TLS:
            return None
        others = ("sslrootcert", "sslcrl") if self.sslmode in CHECKED else ()
        own = ("sslcert", "sslkey") if "sslcert" in self.named else ()
        for name in (*others, *own):
            if (why := self._unreadable(name)) is not None:
                return why
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for name in others:
            try:
                if name in self.named:
                    context.load_verify_locations(cafile=self.named[name])
            except OSError:
                return self._told(name, "holds no certificates in PEM")
        if not {"sslcert", "sslkey"} <= self.named.keys():
            return None
        certificate, key = self.named["sslcert"], self.named["sslkey"]
        try:
            context.load_cert_chain(certificate, keyfile=key, password=lambda: self.sslpassword)
        except OSError:
            return self._told("sslkey", f"is not the key of {certificate}, or sslpassword does not open it")
        return None

    def of_passwords(self) -> str | None:
        """What is wrong with the file of passwords."""
        return self._unreadable("passfile", for_its_owner_alone=True)

    def of_a_refusal(self) -> str | None:
        """Why the driver may have had no password to show."""
        return self.of_passwords() or self._unreadable(OF_ENVIRONMENT, for_its_owner_alone=True)

    def _unreadable(self, name: str, *, for_its_owner_alone: bool = False) -> str | None:
        if name not in self.named:
            return None
        try:
            with open(self.named[name], "rb", opener=_without_waiting) as file:
                mode = os.fstat(file.fileno()).st_mode
                passwords = file.read() if for_its_owner_alone and stat.S_ISREG(mode) else b""
        except (OSError, ValueError) as error:
            return self._told(name, f"cannot be read: {system_words(error) or 'it is no path'}")
        if not stat.S_ISREG(mode):
            return self._told(name, "is no file")
        if for_its_owner_alone and mode & (stat.S_IRWXG | stat.S_IRWXO):
            return self._told(name, "can be used by others than its owner, so it is not read: chmod 600")
        try:
            passwords.decode()
        except UnicodeDecodeError:
            return self._told(name, "is not UTF-8 text")
        return None

    def _told(self, name: str, why: str) -> str:
        return f"store.url: {name}: {self.named[name]} {why}"


def _without_waiting(path: str, flags: int) -> int:
    # A pipe that nobody writes to is otherwise waited for without an end.
    return os.open(path, flags | os.O_NONBLOCK)
