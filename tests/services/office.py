"""An archive with its accounts, a ledger and a clock that is set by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec

from archive.access.subject import Subject
from archive.config import Config
from archive.keys.keyring import Keyring
from archive.ledger.log import AuditFilter, AuditRow, Ledger
from archive.services.accounts import Accounts
from archive.services.factors import Factors
from archive.services.sessions import Sessions
from archive.services.signin import SignIn
from tests.access import rows


class Office:
    """An archive, its accounts, and a clock that is set by hand."""

    def __init__(self, place: rows.Place, keyring: Keyring, storage: Path) -> None:
        self.place = place
        self.at = place.at
        self.ledger = Ledger(keyring)
        self.config = msgspec.structs.replace(Config(), base=str(storage))
        self.config.storage_dir.mkdir(exist_ok=True)
        self.accounts = Accounts(place.database, self.ledger, keyring, lambda: self.at, default_issuer="CLINIC")
        self.factors = Factors(place.database, self.ledger, keyring, self.config, lambda: self.at)
        self.sessions = Sessions(place.database, self.ledger, lambda: self.at)
        self.signin = SignIn(place.database, self.ledger, keyring, self.config, lambda: self.at)
        self.console, self.owner = place.console, place.owner

    def seen(self, subject: Subject) -> set[str]:
        return self.place.seen(subject, at=self.at)

    def events(self) -> list[AuditRow]:
        with self.place.database.read() as tx:
            return self.ledger.search(tx, AuditFilter())

    def user(self, name: str, *roles: str, password: str | None = None) -> Subject:
        row = self.accounts.add_user(self.console, name, roles=roles, password=password)
        return Subject(row["id"], name, "user", "web", address="192.0.2.7")
