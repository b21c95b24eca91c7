"""Share links on the small archive of tests/access/rows.py, a radiologist who may share one study, and mail that is kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.config import Alerts
from archive.errors import Forbidden
from archive.services.albums import Albums
from archive.services.core import Core
from archive.services.outgoing import Undeliverable
from archive.services.share_door import ShareDoor
from archive.services.shares import Shares, Wanted
from tests.services.office import Office

BROWSER: dict[str, Any] = {"address": "192.0.2.9", "user_agent": "Firefox/1"}


class Postbox:
    """Takes the place of services/mail.Mail."""

    def __init__(self, *, works: bool) -> None:
        self.works = works
        self.sent: list[tuple[str, str, list[str]]] = []
        self.down = False

    def send(self, subject: str, text: str, *, to: list[str]) -> None:
        if self.down:
            raise Undeliverable("the mail server did not take it")
        self.sent.append((subject, text, to))

    @property
    def code(self) -> str:
        """The code in the last mail."""
        return self.sent[-1][1][:6]


class World:
    """The office with shares; doc may see and share study 1.1, and see 1.2 without sharing it."""

    def __init__(self, office: Office, *, mail: bool = False) -> None:
        self.office = office
        alerts = Alerts(smtp_host="mail.example" if mail else "", mail_from="archive@example.org")
        config = msgspec.structs.replace(office.config, alerts=alerts)
        self.core = Core(
            config, office.accounts._keyring, office.place.database, None, None, office.ledger, lambda: office.at,  # type: ignore[arg-type]
        )
        self.shares, self.door, self.post = Shares(self.core), ShareDoor(self.core), Postbox(works=mail)
        self.albums = Albums(self.core)
        self.shares._mail = self.door._mail = self.post  # type: ignore[assignment]
        self.doc = office.user("doc")
        give = office.accounts.add_grant
        self.grant = give(office.console, to="doc", role="radiologist", target=Target("study", "1.1"))
        give(office.console, to="doc", role="referrer", target=Target("study", "1.2"))

    def later(self, **by: float) -> None:
        self.office.at += timedelta(**by)

    def create(self, **wanted: Any) -> dict[str, Any]:
        return self.shares.create(self.doc, Wanted(**{"studies": ["1.1"], "recipient": "Dr Ott", **wanted}))

    @staticmethod
    def word(made: dict[str, Any]) -> str:
        return str(made["url"]).partition("#")[2]

    def enter(self, made: dict[str, Any], code: str | None = None) -> str:
        """Open a link, and return the browser's word."""
        word = self.word(made)
        asked = self.door.ask(word)
        given = code if code is not None else self.post.code if asked.code_by == "mail" else made["code"]
        return self.door.enter(word, given, **BROWSER)

    def visitor(self, session: str) -> Subject:
        return self.door.visit(session, **BROWSER).subject

    def seen(self, subject: Subject, need: Permission = Permission.PIXELS) -> set[str]:
        return self.office.place.seen(subject, need, self.office.at)

    def refused(self, made: dict[str, Any], code: str) -> tuple[str, str]:
        """Try a code that does not open, and return what is told."""
        try:
            self.door.enter(self.word(made), code, **BROWSER)
        except Forbidden as error:
            return error.message, error.remedy
        raise AssertionError
