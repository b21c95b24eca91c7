"""Passwords that a directory checks (LDAP, Active Directory): whether one is right, and which groups its holder is in there.

Each check takes the same steps whoever is named, so that the time it takes does not tell who is in the directory. An empty password
never reaches it: a bind without one succeeds and proves nothing (RFC 4513 5.1.2).
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from archive.config import Config
from archive.services import ldap_messages as messages
from archive.services.ldap_client import Connection, CutOff, DirectoryAway, Refused, connected, nobody, secret_of

LOG = logging.getLogger("archive.services")
AWAY_S = 30.0
"""How long a directory that does not answer is left alone: sign-ins with a password of the archive's own must not wait for it."""
MOST_CHARACTERS = 1024
"""Of a password: no directory takes longer ones, and to a message of some 256 KB most answer by closing the connection."""
MOST_GROUPS = 1000
"""As many as a directory tells at once, if it tells so many."""
_AROUND = re.compile(r"\s*(?<!\\)([,=+])\s*")


@dataclass(frozen=True, slots=True)
class Person:
    """Whose password was right: the distinguished name and those of the groups, in one form."""

    dn: str
    groups: frozenset[str]


class Directory:
    """Asked anew at each sign-in; nothing is kept of passwords."""

    def __init__(self, config: Config) -> None:
        """Connect to nothing yet."""
        self._config, self._ldap = config, config.ldap
        self._lock = threading.Lock()
        self._away_until = 0.0
        self.groups = {normal(dn): group for dn, group in config.ldap.groups.items()}

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return self._ldap.there

    @property
    def issuer(self) -> str:
        """What identities of this directory are bound under."""
        return self._ldap.url

    def check(self, name: str, password: str) -> Person | None:
        """Return who a name and a password are; None when they are nobody's, or the directory does not answer. No name: the same work."""
        return self._asked(lambda connection: self._check(connection, name, password), password)

    def confirm(self, dn: str, password: str) -> bool:
        """Whether that is the password of somebody who is known by name there."""
        found = self._asked(lambda connection: Person(dn, frozenset()) if connection.bind(dn, password) else None, password)
        return found is not None

    # -------------------------------------------------------------------------------------------------------------------------------

    def _asked(self, ask: Callable[[Connection], Person | None], password: str) -> Person | None:
        if not password or "\0" in password or len(password) > MOST_CHARACTERS:
            return None
        with self._lock:
            if time.monotonic() < self._away_until:
                return None
        try:
            with connected(self._config) as connection:
                return ask(connection)
        except DirectoryAway as problem:
            LOG.warning("the directory cannot be asked: %s", problem.message)
            if not isinstance(problem, Refused):
                with self._lock:
                    self._away_until = time.monotonic() + AWAY_S
            return None

    def _check(self, connection: Connection, name: str, password: str) -> Person | None:
        wanted = name or secrets.token_hex(16)
        if self._ldap.user_dn:
            dn: str | None = self._ldap.user_dn.replace("{name}", messages.escaped(wanted))
        else:
            self._as_service(connection)
            dn = self._looked_up(connection, wanted)
        if not connection.bind(dn or nobody(self._ldap.base), password) or dn is None:
            return None
        if self._ldap.bind_dn:
            self._as_service(connection)
        return Person(normal(dn), self._groups(connection, dn))

    def _as_service(self, connection: Connection) -> None:
        secret = secret_of(self._config.resolve(self._ldap.bind_password_file))
        if not connection.bind(self._ldap.bind_dn, secret):
            message = "it does not take ldap.bind_dn and its password"
            raise DirectoryAway(message)

    def _looked_up(self, connection: Connection, name: str) -> str | None:
        """Return the one entry of a name; of several, none. Nobody comes in as the archive's own account, or has it locked by guessing."""
        wanted = messages.both(messages.equal("objectClass", self._ldap.object_class), messages.equal(self._ldap.login_attribute, name))
        found = connection.search(self._ldap.base, wanted, [messages.NO_ATTRIBUTES])
        own = normal(self._ldap.bind_dn)
        return found[0].dn if len(found) == 1 and found[0].dn and normal(found[0].dn) != own else None

    def _groups(self, connection: Connection, dn: str) -> frozenset[str]:
        told: set[str] = set()
        if not self.groups:
            return frozenset()
        if self._ldap.group_attribute:
            anybody = messages.present("objectClass")
            for entry in connection.search(dn, anybody, [self._ldap.group_attribute], only=True):
                told.update(entry.attributes.get(self._ldap.group_attribute.lower(), ()))
        if self._ldap.group_base:
            members = messages.either(messages.equal("member", dn), messages.equal("uniqueMember", dn))
            told.update(self._listing(connection, members))
        return frozenset(map(normal, told))

    def _listing(self, connection: Connection, members: bytes) -> list[str]:
        """Return the groups that list a member; where there are more than are told at once those that count here, each asked by name."""
        try:
            found = connection.search(self._ldap.group_base, members, [messages.NO_ATTRIBUTES], limit=MOST_GROUPS, whole=True)
        except CutOff:
            below = "," + normal(self._ldap.group_base)
            inside = [dn for dn in self._ldap.groups if ("," + normal(dn)).endswith(below)]
            found = [one for dn in inside for one in connection.search(dn, members, [messages.NO_ATTRIBUTES], only=True)]
        return [entry.dn for entry in found]


def normal(dn: str) -> str:
    """Return a distinguished name as names are compared: without spaces around its parts, whatever their case."""
    return _AROUND.sub(r"\1", dn.strip()).casefold()
