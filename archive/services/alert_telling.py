"""Alerts told to people: by mail and by webhook, each tried again later and later until it was taken or the alert is closed.

A webhook's body is signed as Standard Webhooks signs (HMAC-SHA256 over id, time and body). Neither names a patient.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import alert, principal
from archive.errors import ArchiveError
from archive.keys.sealing import format_instant
from archive.services import outgoing
from archive.services.core import Core
from archive.services.mail import Mail
from archive.services.outgoing import Limits, Undeliverable

log = logging.getLogger("archive.services")

AGAIN = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))
AT_ONCE = 20
_A = alert.c
_BY_MAIL = (_A.due_at, _A.attempts, _A.told_at)
_BY_HOOK = (_A.hook_due_at, _A.hook_attempts, _A.hook_told_at)
Meanings = Mapping[str, tuple[str, str]]


class Telling:
    """Tells what waits; done by the background worker alone."""

    def __init__(self, core: Core, mail: Mail) -> None:
        """Take from the configuration who is told."""
        config = core.config
        self._database, self._mail, self._name = core.database, mail, config.archive.name
        self._archive_uuid = core.keyring.archive_uuid
        self._url, secret = config.alerts.webhook_url, config.alerts.webhook_secret_file
        self._secret_file = config.resolve(secret) if secret else None
        self._limits = Limits(
            config.webhooks.networks, str(config.resolve(config.webhooks.ca_file)) if config.webhooks.ca_file else ""
        )

    def due(self, at: datetime) -> dict[str, Any]:
        """Return the columns of a new alert that say who is to be told of it."""
        return {"due_at": at if self._mail.wanted else None, "hook_due_at": at if self._hooked else None}

    @property
    def _hooked(self) -> bool:
        return bool(self._url and self._secret_file)

    def tick(self, at: datetime, meanings: Meanings) -> None:
        """Tell each alert that is due; `meanings` says of a rule its severity and what it means.

        Raises:
            DatabaseUnavailable.
        """
        if self._mail.wanted:
            self._tell(at, _BY_MAIL, lambda row: self._mail.send(f"[{row['severity']}] {_meaning(row, meanings)}", _letter(row, meanings)))
        if self._hooked:
            self._tell(at, _BY_HOOK, lambda row: self._post(row, at, meanings))

    def _tell(self, at: datetime, columns: tuple[Any, Any, Any], send: Callable[[dict[str, Any]], None]) -> None:
        due_at, attempts, told_at = columns
        # One that is due later than any pause was noted by a clock that has been set back since.
        is_due = sa.or_(due_at <= at, due_at > at + AGAIN[-1])
        with self._database.read() as tx:
            rows = tx.execute(shown(sa.select(alert).where(is_due).order_by(_A.id).limit(AT_ONCE))).mappings()
            due = [dict(row) for row in rows]
        for row in due:
            tried = row[attempts.name]
            values: dict[str, Any] = {attempts.name: tried + 1}
            try:
                send(row)
            except ArchiveError as error:
                values[due_at.name] = at + AGAIN[min(tried, len(AGAIN) - 1)]
                log.warning("an alert could not be told: %s", error.message, extra={"remedy": error.remedy})
            else:
                values |= {due_at.name: None, told_at.name: at}
            with self._database.begin(durable=False) as tx:
                tx.execute(sa.update(alert).where(_A.id == row["id"]).values(values))

    def _post(self, row: dict[str, Any], at: datetime, meanings: Meanings) -> None:
        body = msgspec.json.encode({
            "type": "alert", "archive": self._name, "alert": row["id"], "rule": row["rule"], "severity": row["severity"],
            "text": _meaning(row, meanings), "who": row["who"] or "", "detail": row["detail"], "event": row["first_event"],
            "at": format_instant(row["raised_at"]),
        })
        name, second = f"{self._archive_uuid}-alert-{row['id']}", str(int(at.timestamp()))
        signature = hmac.new(self._secret(), f"{name}.{second}.".encode() + body, hashlib.sha256).digest()
        headers = {
            "Content-Type": "application/json", "User-Agent": "strongroom", "webhook-id": name, "webhook-timestamp": second,
            "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        }
        outgoing.post(self._url, body, headers, self._limits)

    def _secret(self) -> bytes:
        assert self._secret_file is not None
        try:
            text = self._secret_file.read_text(encoding="ascii").strip()
            return base64.b64decode(text.removeprefix("whsec_"), validate=True) if text.startswith("whsec_") else text.encode()
        except (OSError, ValueError, binascii.Error):
            message = "the secret of the alerts' webhook cannot be read"
            raise Undeliverable(message, remedy="put it into the file [alerts] webhook_secret_file names") from None


def shown(query: sa.Select[Any]) -> sa.Select[Any]:
    """Return a query of alerts with the name of whom each is about, as `who`."""
    return query.add_columns(principal.c.name.label("who")).outerjoin(principal, principal.c.id == _A.principal_id)


def _meaning(row: dict[str, Any], meanings: Meanings) -> str:
    """Return what an alert means; one that another release raised may be by a rule that this one does not have."""
    return str(meanings.get(row["rule"], ("", row["rule"]))[1])


def _letter(row: dict[str, Any], meanings: Meanings) -> str:
    facts = "".join(f"  {name.replace('_', ' ')}: {value}\n" for name, value in row["detail"].items())
    who = f"Account: {row['who']}\n" if row["who"] else ""
    return (
        f"{_meaning(row, meanings)}\n\n{who}{facts}At: {row['raised_at']:%Y-%m-%d %H:%M:%S} UTC\nEvent: {row['first_event']}\n\n"
        f"Look at it with 'archive audit search --before {row['last_event'] + 1}', then close it with\n"
        f"'archive alert acknowledge {row['id']} --note TEXT'.\n"
    )
