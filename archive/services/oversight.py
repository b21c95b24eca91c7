"""Oversight: who did what, and that nobody changed what is written about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive import locks
from archive.access import policy
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import held, instance
from archive.errors import IntegrityError, InvalidRequest, NotFound, VaultUnavailable
from archive.ledger import checkpoints, cosignatures, files, nodes, proofs, witnessed
from archive.ledger.audit import KINDS, Event, Kind, ObjectRef
from archive.ledger.log import AuditFilter
from archive.ledger.verify import Report, Verifier, of_files
from archive.services import audit_search, denials, key_record, snapshot, witness_check, work_snapshot
from archive.services.acknowledged import acknowledged
from archive.services.core import Core

ACTIONS = ("C", "R", "U", "D", "E")
OUTCOMES = (0, 4, 8, 12)
"""Success, minor, serious and major failure (PS3.15 A.5)."""


class Oversight:
    """The audit log and the ledger; needs the permission audit, or the console."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core

    # --- audit ---------------------------------------------------------------------------------------------------------------------

    def search(
        self, subject: Subject, *, user: str | None = None, patient: str | None = None, study: str | None = None,
        series: str | None = None, kinds: Sequence[str] = (), since: datetime | None = None, until: datetime | None = None,
        failed: bool = False, before: int | None = None, limit: int = 100, actions: Sequence[str] = (), outcome: int | None = None,
        network: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return events, newest first, as `page` does, without saying where to go on."""
        return self.page(
            subject, user=user, patient=patient, study=study, series=series, kinds=kinds, since=since, until=until, failed=failed,
            before=before, limit=limit, actions=actions, outcome=outcome, network=network,
        )[0]

    def page(
        self, subject: Subject, *, user: str | None = None, patient: str | None = None, study: str | None = None,
        series: str | None = None, kinds: Sequence[str] = (), since: datetime | None = None, until: datetime | None = None,
        failed: bool = False, before: int | None = None, limit: int = 100, actions: Sequence[str] = (), outcome: int | None = None,
        network: str | None = None,
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Return events, newest first, and the number to go on before; looking is an event too.

        With a `network` (CIDR) so many events are opened at most, so there may be fewer than `limit`, and more to come.

        Raises:
            Forbidden; NotFound: no such user; InvalidRequest: no such kind of event, action or network.
        """
        core = self._core
        at = core.clock()
        self._require(subject)
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            message = f"there is no kind of event {unknown[0]!r}"
            raise InvalidRequest(message, remedy=f"one of: {', '.join(sorted(KINDS))}")
        if any(action not in ACTIONS for action in actions) or outcome not in (None, *OUTCOMES):
            message = "an action is one of C, R, U, D, E and an outcome one of 0, 4, 8, 12"
            raise InvalidRequest(message)
        inside = None if network is None else audit_search.network(network)
        objects = [("patient", patient), ("study", study), ("series", series)]
        named = [ObjectRef(kind, value) for kind, value in objects if value]  # type: ignore[arg-type] # the three words of ObjectRef
        if len(named) > 1:
            message = "name one of patient, study and series"
            raise InvalidRequest(message)
        with core.database.read() as tx:
            principal = None if user is None else audit_search.person(tx, user)
            wanted = AuditFilter(
                principal_id=principal, kinds=tuple(KINDS[kind] for kind in kinds), obj=named[0] if named else None, since=since,
                until=until, failed=failed, before=before, limit=min(max(limit, 1), 10_000), actions=tuple(actions), outcome=outcome,
            )
            found = audit_search.find(core.ledger, tx, wanted, inside)
        rows = found.rows
        detail = {"kinds": list(kinds), **({"network": str(inside)} if inside is not None else {})}
        event = Event(Kind.AUDIT_READ, subject=subject, objects=tuple(named), instances=len(rows), detail=detail)
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=at)
        return [{**asdict(row), "id": row.n, "at": row.at.isoformat()} for row in rows], found.before

    # --- ledger --------------------------------------------------------------------------------------------------------------------

    def verify_ledger(self, subject: Subject, *, witnesses: Sequence[str] = ()) -> dict[str, Any]:
        """Check every leaf, checkpoint, body and file; return ok, size, root and findings.

        Of `witnesses` (verifier keys) each must have signed a checkpoint of this log, as the stored cosignatures show.

        Raises:
            Forbidden; LedgerBroken: no verifier key of a witness. KeysUnavailable.
        """
        self._require(subject)
        keys = [cosignatures.parse_key(one) for one in witnesses]
        report = verify_ledger(self._core)
        with self._core.database.read() as tx:
            agreed = witness_check.agreeing(self._core, tx, keys)
        for key, size, _at in agreed:
            if not size:
                report.add("V14", f"the witness {key.name} has signed no checkpoint of this log that is kept here")
        return {
            "witnesses": [{"name": key.name, "size": size, "at": at} for key, size, at in agreed],
            "ok": report.ok, "size": report.size, "root": report.root.hex(), "checkpoints": report.checkpoints, "erased": report.erased,
            "findings": [{"code": finding.code, "detail": finding.detail} for finding in report.findings],
        }

    def prove(self, subject: Subject, what: str) -> str:
        """Return the proof of an event by its number, a stored instance by its SOP Instance UID, a commitment by its Transaction UID.

        Raises:
            Forbidden, NotFound, LedgerBroken.
        """
        core = self._core
        self._require(subject)
        event = Event(Kind.AUDIT_READ, subject=subject, detail={"what": "proof", "of": what[:64]})
        with core.database.begin() as tx:
            core.ledger.record(tx, event, at=core.clock())
        with core.database.read() as tx:
            numbered = what.isascii() and what.isdigit() and len(what) < 19
            return proofs.prove(tx, core.keyring, int(what) if numbered else self._leaf_of(tx, what))

    def public_keys(self) -> list[str]:
        """Return the keys a checker elsewhere needs, one line each."""
        return [str(key) for key in proofs.verifier_keys(self._core.keyring)]

    def rolled_back(self) -> str:
        """Return why ledger or keyring contradict what is remembered of them elsewhere (V14), or nothing."""
        core = self._core
        try:
            with core.database.read() as tx:
                older = key_record.contradiction(core, tx, acknowledged(core, tx))
            if older:
                return f"{older} (V14)"  # first: an older keyring knows no newer signature
            self._check_ledger()
        except IntegrityError as error:
            return f"{error.message} ({error.verdict})"
        return ""

    def _check_ledger(self) -> None:
        core = self._core
        # Before the log, whose size is that of the first look: what is signed meanwhile is no rollback.
        anchors, claims = [*_anchors(core), *_witnessed(core)], witnessed.claims(core.config.ledger_dir)
        with core.database.read() as tx:
            given_up = acknowledged(core, tx)
            checkpoints.check_anchor(tx, core.keyring, anchors, acknowledged=given_up)
            witnessed.check_claims(tx, claims, acknowledged=given_up)

    def acknowledge(self, subject: Subject, *, reason: str) -> None:
        """Go on after a rollback that cannot be undone; the anchors it contradicts are named in the event.

        What the records say that this index does not know is done again at the next start. Where the keyring alone is an older copy,
        the ledger's anchors go on to count.

        Raises:
            Forbidden; InvalidRequest: no reason, or nothing to acknowledge. KeysUnavailable.
        """
        core = self._core
        if subject.kind != "console":
            message = "a rollback is acknowledged at the console only"
            raise InvalidRequest(message, remedy="run 'archive ledger acknowledge' on the archive's machine")
        if not reason.strip():
            message = "a reason is needed"
            raise InvalidRequest(message, remedy="say why with --reason")
        from archive.services import catchup  # with all that stores, which nobody else here needs

        with core.database.read() as tx:
            size = nodes.size(tx)
            older = key_record.contradiction(core, tx, acknowledged(core, tx))
        against, more = key_record.to_acknowledge(core) if older else ([], {})
        ledger = not older or not self._sound()
        if ledger:
            against = [*against, *_anchors(core), *_witnessed(core), *witnessed.claims(core.config.ledger_dir)]
            for kept in (snapshot.FILES, work_snapshot.FILES):
                kept.set_aside(core.config.ledger_dir, size)
        with core.database.begin() as tx:
            core.ledger.record(tx, checkpoints.acknowledgement(against, subject=subject, reason=reason, **more), at=core.clock())
            if ledger:
                catchup.set_due(tx)

    def _sound(self) -> bool:
        try:
            self._check_ledger()
        except IntegrityError:
            return False
        return True

    # -------------------------------------------------------------------------------------------------------------------------------

    def _require(self, subject: Subject) -> None:
        core = self._core
        with denials.recorded(core, subject), core.database.read() as tx:
            policy.require(tx, subject, Permission.AUDIT, core.clock())

    @staticmethod
    def _leaf_of(tx: sa.Connection, uid: str) -> int:
        from archive.services.commitments import receipt_leaf

        token = policy.system("verify")
        for table in (instance, held):
            leaf = policy.run_as(tx, token, sa.select(table.c.leaf).where(table.c.sop_instance_uid == uid)).scalars().first()
            if leaf is not None:
                return int(leaf)
        promised = receipt_leaf(tx, uid)
        if promised is not None:
            return promised
        message = "there is no such event, instance or commitment"
        raise NotFound(message, remedy="name it by its number, SOP Instance UID or Transaction UID")


def verify_ledger(core: Core) -> Report:
    """Check the whole ledger against itself, its files and its anchors.

    Raises:
        KeysUnavailable, DatabaseUnavailable.
    """
    core.keyring.stay_current()
    while True:
        generation = core.keyring.generation
        report = _verified(core)
        core.keyring.stay_current()
        # What was found may have been signed by keys that came meanwhile.
        if report.ok or core.keyring.generation == generation:
            return report


def _verified(core: Core) -> Report:
    heartbeat = timedelta(minutes=core.config.ledger.heartbeat_minutes)
    # Before the log, as in `rolled_back`.
    anchors, beside, claims = _anchors(core), _witnessed(core), witnessed.claims(core.config.ledger_dir)
    with core.database.read() as tx:
        verifier = Verifier(tx, core.keyring, heartbeat=heartbeat)
        given_up = acknowledged(core, tx)
        report = verifier.run(anchors=anchors, acknowledged=given_up, directory=None)
        witness_check.findings(core, tx, report, given_up, anchors=beside, claims=claims)
        if older := key_record.contradiction(core, tx, given_up):
            report.add("V14", older)
    with _no_new_checkpoint(core), core.database.read() as tx:
        for finding in of_files(tx, core.config.ledger_dir):
            report.add(finding.code, finding.detail)
        if checkpoints.latest(tx) is not None:
            for anchor, place in zip(_anchors(core), ("the ledger's folder", "the keystore"), strict=True):
                if anchor is None:
                    report.add("V14", f"{place} remembers no checkpoint")
    return report


@contextmanager
def _no_new_checkpoint(core: Core) -> Iterator[None]:
    """Keep the ledger's files from being replaced meanwhile; where nothing can be locked, nothing can be written either."""
    with ExitStack() as stack:
        with suppress(VaultUnavailable):
            stack.enter_context(locks.alone(core.config.run_dir / "checkpoint.lock"))
        yield


def _anchors(core: Core) -> list[bytes | None]:
    anchor = core.keystore.anchor("checkpoint")
    return [files.read_checkpoint(core.config.ledger_dir), None if anchor is None else anchor.note]


def _witnessed(core: Core) -> list[bytes]:
    return witnessed.anchors(core.config.ledger_dir)
