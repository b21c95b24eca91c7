"""The newest checkpoint for people to keep: a page with a QR code, a mail, a line in another log; and compared when it comes back."""

from __future__ import annotations

import io
import logging
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import archive_state
from archive.errors import ArchiveError, InvalidRequest, LedgerBroken, NotFound
from archive.ledger import checkpoints, nodes, notes, printed, tree, witnessed
from archive.ledger.audit import Kind
from archive.services.audit_feed import AuditFeed
from archive.services.changes import Changes
from archive.services.core import Core
from archive.services.health import Health
from archive.services.mail import Mail

log = logging.getLogger("archive.services")
MAILED = "checkpoint_mailed_at"
DAILY, HOURLY = timedelta(days=1), timedelta(hours=1)
AGAIN = timedelta(minutes=10)


class Printed(Changes):
    """Looked at with the permission audit; mailed by the background worker."""

    def __init__(self, core: Core, mail: Mail | None = None, feed: AuditFeed | None = None) -> None:
        """Work on an opened archive; `mail` and `feed` send, by the configuration unless given."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self._core = core
        self._mail = mail or Mail(core.config)
        self._feed = feed or AuditFeed(core)
        self._tried_at: datetime | None = None
        self._told_at: datetime | None = None

    def checkpoint_line(self) -> str:
        """Return the newest checkpoint as one line for the log of another system; empty before the first."""
        with self._database.read() as tx:
            newest = checkpoints.latest(tx)
        return "" if newest is None else printed.line(newest.note)

    def page(self, subject: Subject) -> dict[str, Any]:
        """Return what the page to print holds: name, origin, size, time, root, the short note and its QR code as SVG.

        Raises:
            Forbidden; NotFound: nothing is signed yet.
        """
        newest = self._read(subject, Permission.AUDIT, lambda tx, _at: checkpoints.latest(tx))
        if newest is None:
            message = "nothing is signed yet"
            raise NotFound(message, remedy="the first checkpoint follows within seconds while the archive runs")
        if not self._read_only:
            self._change(subject, Permission.AUDIT, lambda tx, at: self._record(tx, Kind.AUDIT_READ, subject, at, what="checkpoint page"))
        note = printed.short(newest.note)
        return {
            "name": self._core.config.archive.name, "origin": notes.origin_of(self._core.keyring.archive_uuid), "size": newest.size,
            "at": newest.at, "root": newest.root.hex(), "note": note, "picture": _picture(note),
        }

    def compare(self, subject: Subject, text: str) -> dict[str, Any]:
        """Say whether the log today still contains a checkpoint that was printed or mailed.

        Raises:
            Forbidden; InvalidRequest: no checkpoint in it, or one whose signature is wrong; NotFound: it is another archive's.
        """
        core = self._core
        origin = notes.origin_of(core.keyring.archive_uuid)

        def work(tx: sa.Connection, _at: datetime) -> dict[str, Any]:
            try:
                copied = printed.find(text, notes.verifiers(origin, core.keyring.public_keys()))
            except LedgerBroken as error:
                message = "the signature in this text is not this archive's over this checkpoint"
                raise InvalidRequest(message, remedy="compare the text with the paper, letter by letter") from error
            if copied.origin != origin:
                message = "this checkpoint is another archive's"
                raise NotFound(message, remedy=f"this archive is {origin}")
            size = nodes.size(tx)
            why = ""
            if copied.size > size:
                why = f"the ledger holds {size} events, but the checkpoint is over {copied.size}: it was rolled back (V14)"
            elif tree.root(nodes.lookup(tx), copied.size) != copied.root:
                why = f"the first {copied.size} events are not the ones the checkpoint is over (V14)"
            return {"consistent": not why, "why": why, "size": copied.size, "now": size, "signed": copied.signed}

        return self._read(subject, Permission.AUDIT, work)

    # --- mail -------------------------------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Mail the newest checkpoint once a day, tell it to the syslog collector each hour; what cannot be sent is tried again later.

        Raises:
            DatabaseUnavailable.
        """
        self._tell()
        core, at = self._core, self._clock()
        to = core.config.witness.mail_to
        if self._read_only or not to or not core.config.alerts.smtp_host:
            return 0
        if self._tried_at is not None and timedelta(0) <= at - self._tried_at < AGAIN:
            return 0
        with self._database.read() as tx:
            last = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == MAILED)).scalar()
            newest = checkpoints.latest(tx)
        if newest is None or (last is not None and timedelta(0) <= at - datetime.fromisoformat(last) < DAILY):
            return 0
        self._tried_at = at
        try:
            self._mail.send(f"checkpoint over {newest.size} events", self._letter(newest), to=to)
        except ArchiveError as error:
            log.warning("the checkpoint could not be mailed: %s", error.message, extra={"remedy": error.remedy})
            return 0
        with self._database.begin(durable=False) as tx:
            tx.execute(sa.delete(archive_state).where(archive_state.c.name == MAILED))
            tx.execute(sa.insert(archive_state).values(name=MAILED, value=at.isoformat()))
        return 0

    def _tell(self) -> None:
        at = self._clock()
        if self._read_only or not self._feed.wanted or (self._told_at is not None and timedelta(0) <= at - self._told_at < HOURLY):
            return
        line = self.checkpoint_line()
        try:
            if line:
                self._feed.checkpoint(line)
                self._told_at = at
        except ArchiveError as error:
            log.warning("the checkpoint could not be told to the syslog collector: %s", error.message, extra={"remedy": error.remedy})

    def _letter(self, newest: checkpoints.Checkpoint) -> str:
        core = self._core
        told = "".join(f"  {check.name}: {check.detail}\n" for check in Health(core).checks() if check.state != "ok")
        return (
            f"Archive: {core.config.archive.name}\nEvents: {newest.size}\nSigned: {newest.at:%Y-%m-%d %H:%M:%S} UTC\n\n"
            f"{printed.short(newest.note)}\n"
            "Keep this mail. Should anybody doubt the archive's history, 'archive ledger compare FILE' with this text\n"
            f"tells whether it still contains these {newest.size} events.\n\n"
            f"{'What archive doctor has to say:' if told else 'archive doctor finds nothing wrong.'}\n{told}"
        )


def checkpoint_of(tx: sa.Connection) -> bytes | None:
    """Return the newest checkpoint with what witnesses signed under it."""
    newest = checkpoints.latest(tx)
    return None if newest is None else newest.note + "".join(witnessed.lines(tx, newest.size)).encode()


def _picture(note: str) -> str:
    """Return a QR code as SVG without a style or script of its own."""
    import segno

    out = io.BytesIO()
    segno.make(note, error="m", micro=False, encoding="utf-8").save(
        out, kind="svg", scale=4, border=4, xmldecl=False, nl=False, svgclass=None, lineclass=None, dark="#000", light="#fff",
        title="QR code of the checkpoint", omitsize=True,
    )
    return out.getvalue().decode()
