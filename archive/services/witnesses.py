"""Witnesses outside: each is sent the newest checkpoint, and what it cosigned is kept; what it holds against the log stops the archive.

A witness is the one memory that does not go back with a copy of the storage. Its cosignature shows who gave it; so does the log's own
signature on a checkpoint it shows against the log. A claim without either counts when TLS says whose it is, and is told otherwise.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.config import Witness, WitnessAt
from archive.db import upsert
from archive.db.tables import witness, witness_cosignature
from archive.errors import ArchiveError, LedgerBroken, NotFound
from archive.ledger import checkpoints, cosignatures, nodes, notes, tree, witnessed
from archive.ledger.audit import Event, Kind
from archive.ledger.checkpoints import Checkpoint
from archive.ledger.notes import Verifier
from archive.services.acknowledged import acknowledged
from archive.services.changes import Changes
from archive.services.clock import machine_now
from archive.services.core import Core
from archive.services.outgoing import Undeliverable
from archive.services.witness_calls import Line, Said
from archive.services.witness_state import Settings

ATTEMPTS = 4
START_S, STOP_S = 3.0, 2.0
KEEP_ALL = timedelta(days=7)
DAY_US = 86_400_000_000
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n?")
_W, _C = witness.c, witness_cosignature.c
GIVEN_UP = "it remembers a part of the ledger that was given up: let its operator give 'archive witness forget'"


@dataclass(frozen=True, slots=True)
class Told:
    """How asking one witness went; `against` when it holds something against the log."""

    name: str
    size: int = 0
    at: datetime | None = None
    problem: str = ""
    against: str = ""


class Witnesses(Changes):
    """Asked by one background worker, at each start, and at the console."""

    def __init__(self, core: Core, on_against: Callable[[], object] = lambda: None) -> None:
        """`on_against` is called once something is held against the log of a serving archive."""
        super().__init__(core.database, core.ledger, core.clock, read_only=core.read_only)
        self.on_against = on_against
        self._core = core
        self._last: dict[str, datetime] = {}
        self._settings = Settings(core.config)

    # --- the background ---------------------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Ask the witnesses that are due, and tell of those that are silent; what cannot be asked is asked again.

        Raises:
            DatabaseUnavailable, VaultUnavailable, LedgerBroken.
        """
        if self._read_only:
            return 0
        settings, now = self.settings(), machine_now(self._clock)
        every = timedelta(minutes=settings.every_minutes)
        for one in settings.known:
            last = self._last.get(one.name)
            if last is None or not timedelta(0) <= now - last < every:
                self._last[one.name] = now
                if self._ask(one, 10.0).against:
                    self.on_against()
        self._silence(settings, self._clock())
        return 0

    def at_start(self) -> str:
        """Ask all witnesses at once, briefly, and return what one holds against the log, or nothing; silence lets the archive start.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        return next((told.against for told in self._ask_all(START_S) if told.against), "")

    def at_stop(self) -> None:
        """Let them know how far the ledger went; those that do not answer hold nothing up."""
        if not self._read_only:
            self._ask_all(STOP_S)

    def settings(self) -> Witness:
        """Return [witness] as it is written now."""
        return self._settings.now()

    def _ask_all(self, timeout_s: float) -> list[Told]:
        known = self.settings().known
        found: list[Told] = []

        def ask(one: WitnessAt) -> None:
            try:
                found.append(self._ask(one, timeout_s))
            except ArchiveError as error:
                found.append(Told(one.name, problem=error.message))

        threads = [threading.Thread(target=ask, args=(one,), daemon=True) for one in known]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * timeout_s)
        return sorted(found, key=lambda told: told.name)

    # --- one witness ------------------------------------------------------------------------------------------------------------------

    def _ask(self, one: WitnessAt, timeout_s: float) -> Told:
        """Send the newest checkpoint, from the size the witness has; keep what it says."""
        try:
            key = cosignatures.parse_key(one.key)
        except LedgerBroken:
            return self._failed(one, "its key in the configuration is not the verifier key of a witness")
        ca_file = self._core.config.resolve(self.settings().ca_file) if self.settings().ca_file else ""
        line = Line(one.url, str(ca_file), timeout_s)
        try:
            return self._exchange(one, key, line)
        except Undeliverable as error:
            return self._failed(one, error.message)

    def _exchange(self, one: WitnessAt, key: Verifier, line: Line) -> Told:
        old, cosigned_before = self._known(one)
        said: Said | None = None
        for _ in range(ATTEMPTS):
            newest, proof = self._newest(old)
            if newest is None:
                return Told(one.name, problem="nothing is signed yet")
            if proof is None and said is not None:
                return self._against(one, line, old, said)
            if proof is None:
                old = 0  # what is known of it cannot be; it says itself what it has
                continue
            said = line.add_checkpoint(_request(old, proof, newest.note))
            if said.status == 200:
                return self._agreed(one, key, newest, said, anew_from=cosigned_before if old < cosigned_before else 0)
            size = _size(said) if said.status == 409 else None
            if said.status == 422 or size == old:
                return self._against(one, line, old, said)
            if size is None:
                return self._failed(one, _refusal(said.status))
            old = size
        return self._failed(one, "it names another size each time it is asked")

    def _newest(self, old: int) -> tuple[Checkpoint | None, list[bytes] | None]:
        """Return the newest checkpoint and the proof from `old`; without a proof when the log is smaller."""
        with self._database.read() as tx:
            newest = checkpoints.latest(tx)
            if newest is None or old > newest.size:
                return newest, None
            return newest, tree.consistency_proof(nodes.lookup(tx), old, newest.size) if old else []

    def _agreed(self, one: WitnessAt, key: Verifier, newest: Checkpoint, said: Said, *, anew_from: int) -> Told:
        """Keep a cosignature; `anew_from` is the size the witness had cosigned before it was asked, if it knows of less by now."""
        lines = cosignatures.own_lines(said.body.decode(errors="replace"), key)
        cosigned = cosignatures.with_lines(newest.note, lines)
        try:
            times = cosignatures.found(notes.parse(cosigned), [key])
        except LedgerBroken:
            times = {}
        if not times:
            return self._failed(one, "its answer is not signed with the key in the configuration")
        at = self._clock()
        told = Told(one.name, newest.size, times[key])
        row = {"witness": one.name, "size": newest.size, "root": newest.root, "at": times[key], "line": "".join(lines)}
        with self._database.begin() as tx:
            known = tx.execute(sa.select(witness).where(_W.name == one.name, _W.verifier_key == one.key).with_for_update()).first()
            if known is None:
                return Told(one.name, problem="it was removed from the configuration meanwhile")
            # Somebody else may have asked it meanwhile, and may have got further: nothing of that is undone.
            sizes = set(tx.execute(sa.select(_C.size).where(_C.witness == one.name)).scalars())
            if anew_from in sizes:  # its operator let it forget: what it said before may be of a part of the log that was given up
                tx.execute(sa.delete(witness_cosignature).where(_C.witness == one.name, _C.size <= anew_from))
                self._note(tx, at, 4, what="begins anew", witness=one.name)
                sizes = {size for size in sizes if size > anew_from}
            elif known.told_silent_at is not None:
                self._note(tx, at, 0, what="heard again", witness=one.name)
            if any(size > newest.size for size in sizes):
                return told
            tx.execute(sa.delete(witness_cosignature).where(_C.witness == one.name, _C.size == newest.size))
            tx.execute(sa.insert(witness_cosignature).values(row))
            self._thin(tx, one.name, at)
            values = {"size": newest.size, "agreed_at": at, "problem": "", "told_silent_at": None}
            tx.execute(sa.update(witness).where(_W.name == one.name).values(values))
            witnessed.keep(self._core.config.ledger_dir, one.name, cosigned)
        return told

    def _note(self, tx: sa.Connection, at: datetime, outcome: int, **detail: Any) -> None:
        self._ledger.record(tx, Event(Kind.WITNESS, outcome=outcome, detail=detail), at=at)

    @staticmethod
    def _thin(tx: sa.Connection, name: str, at: datetime) -> None:
        """Keep every cosignature of a week, and of each day before it the last."""
        old = sa.and_(_C.witness == name, _C.at < at - KEEP_ALL)
        day = sa.type_coerce(_C.at, sa.BigInteger) / sa.literal_column(str(DAY_US))
        last = sa.select(sa.func.max(_C.size)).where(old).group_by(sa.cast(sa.func.floor(day), sa.BigInteger))
        tx.execute(sa.delete(witness_cosignature).where(old, _C.size.not_in(last)))

    def _against(self, one: WitnessAt, line: Line, size: int, said: Said) -> Told:
        """Decide whether what a witness says against the log is shown to be so."""
        core, directory = self._core, self._core.config.ledger_dir
        shown = line.newest(notes.origin_of(core.keyring.archive_uuid))
        own = b"" if shown is None else _own(shown, notes.origin_of(core.keyring.archive_uuid))
        with self._database.read() as tx:
            why = _held(tx, core, own) if own else ""
            given_up = acknowledged(core, tx)
        if why:
            if checkpoints.digest(own) in given_up:
                return self._failed(one, GIVEN_UP)
            witnessed.hold_against(directory, one.name, own)
            return self._told(one, f"{why} (V14)", proven=True)
        if said.proven and shown is None:
            if checkpoints.digest(witnessed.claim(one.name, size)) in given_up:
                return self._failed(one, GIVEN_UP)
            witnessed.hold_claim(directory, one.name, size)
            return self._told(one, f"the witness {one.name} remembers {size} events that are not this ledger's (V14)", proven=True)
        return self._told(one, f"it speaks of {size} events that are not this ledger's, and nothing shows that this is so", proven=False)

    def _told(self, one: WitnessAt, problem: str, *, proven: bool) -> Told:
        """Record, once, that a witness speaks against the log."""
        with self._database.begin() as tx:
            if tx.execute(sa.select(_W.problem).where(_W.name == one.name)).scalar() != problem:
                self._note(tx, self._clock(), 12 if proven else 8, what="against", witness=one.name, proven=int(proven))
            tx.execute(sa.update(witness).where(_W.name == one.name).values(problem=problem))
        return Told(one.name, problem=problem, against=problem if proven else "")

    def _failed(self, one: WitnessAt, problem: str) -> Told:
        with self._database.begin(durable=False) as tx:
            tx.execute(sa.update(witness).where(_W.name == one.name).values(problem=problem))
        return Told(one.name, problem=problem)

    def _known(self, one: WitnessAt) -> tuple[int, int]:
        """Return the size a witness is known to have and the newest it cosigned; one with another key than before is another witness."""
        with self._database.begin(durable=False) as tx:
            row = tx.execute(sa.select(witness).where(_W.name == one.name)).first()
            if row is not None and row.verifier_key == one.key:
                return int(row.size), int(tx.execute(sa.select(sa.func.max(_C.size)).where(_C.witness == one.name)).scalar() or 0)
            tx.execute(sa.delete(witness_cosignature).where(_C.witness == one.name))
            tx.execute(sa.delete(witness).where(_W.name == one.name))
            made = upsert.insert(witness, sqlite=self._database.sqlite).values(name=one.name, verifier_key=one.key, since=self._clock())
            tx.execute(made.on_conflict_do_nothing())  # somebody else may ask it for the first time meanwhile
        return 0, 0

    def _silence(self, settings: Witness, at: datetime) -> None:
        """Record, once, that a witness has not answered for long."""
        late = at - timedelta(hours=settings.silent_hours)
        names = [one.name for one in settings.known]
        silent = sa.select(witness).where(
            _W.name.in_(names), _W.told_silent_at.is_(None), sa.func.coalesce(_W.agreed_at, _W.since) < late
        )
        with self._database.read() as tx:
            rows = tx.execute(silent).all()
        for row in rows:
            with self._database.begin() as tx:
                tx.execute(sa.update(witness).where(_W.name == row.name).values(told_silent_at=at))
                hours = int((at - (row.agreed_at or row.since)).total_seconds()) // 3600
                self._note(tx, at, 4, what="silent", witness=row.name, hours=hours)

    # --- for people -------------------------------------------------------------------------------------------------------------------

    def show(self, subject: Subject) -> list[dict[str, Any]]:
        """Return each witness: where it is, what it remembers, when it last agreed and what is wrong.

        Raises:
            Forbidden.
        """
        rows = self._read(subject, Permission.AUDIT, lambda tx, _at: {row.name: row for row in tx.execute(sa.select(witness))})
        return [_shown(one, rows.get(one.name)) for one in self.settings().known]

    def ask(self, subject: Subject, name: str | None = None) -> list[dict[str, Any]]:
        """Ask one witness or all of them now.

        Raises:
            Forbidden; NotFound: no witness of that name; ReadOnly.
        """
        self._change(subject, Permission.CONFIGURE, lambda _tx, _at: None)
        wanted = [one for one in self.settings().known if name in {None, one.name}]
        if name is not None and not wanted:
            message = "there is no such witness"
            raise NotFound(message, remedy="'archive witness list' shows them")
        told = [self._ask(one, 10.0) for one in wanted]
        if any(one.against for one in told):
            self.on_against()
        return [{"name": one.name, "size": one.size, "at": one.at, "problem": one.problem, "against": bool(one.against)} for one in told]

    def configured(self, subject: Subject, *, what: str, name: str, url: str = "", key: str = "") -> None:
        """Record that a witness was added to the configuration or removed from it.

        Raises:
            Forbidden, ReadOnly.
        """
        def work(tx: sa.Connection, at: datetime) -> None:
            if what == "witness removed":
                tx.execute(sa.delete(witness_cosignature).where(_C.witness == name))
                tx.execute(sa.delete(witness).where(_W.name == name))
            self._record(tx, Kind.CONFIGURED, subject, at, what=what, name=name, url=url, key=key)

        self._change(subject, Permission.CONFIGURE, work)
        if what == "witness removed":
            witnessed.forget(self._core.config.ledger_dir, name)


def _held(tx: sa.Connection, core: Core, own: bytes) -> str:
    """Return what a checkpoint of this log's keys says against the log, or nothing."""
    try:
        checkpoints.check_anchor(tx, core.keyring, [own])
    except LedgerBroken as error:
        try:
            notes.read(own, notes.verifiers(notes.origin_of(core.keyring.archive_uuid), core.keyring.public_keys()))
        except LedgerBroken:
            return ""  # nobody vouches for it
        return error.message
    return ""


def _own(shown: bytes, origin: str) -> bytes:
    """Return a checkpoint with the signatures of its log alone."""
    head, blank, lines = shown.partition(b"\n\n")
    by_log = f"\N{EM DASH} {origin} ".encode()
    return head + blank + b"".join(line for line in lines.splitlines(keepends=True) if line.startswith(by_log))


def _request(old: int, proof: list[bytes], note: bytes) -> bytes:
    lines = [f"old {old}", *(base64.b64encode(part).decode() for part in proof)]
    return "\n".join(lines).encode() + b"\n\n" + note


def _size(said: Said) -> int | None:
    found = _SIZE.fullmatch(said.body)
    return int(found[1]) if found else None


def _refusal(status: int) -> str:
    return {
        403: "it does not know the key that signs this ledger: start it with what 'archive ledger keys' prints",
        404: "it does not know this ledger: start it with --log and what 'archive ledger keys' prints",
    }.get(status, f"it answered {status}")


def _shown(one: WitnessAt, row: Any) -> dict[str, Any]:
    return {
        "name": one.name, "url": one.url, "key": one.key, "size": 0 if row is None else row.size,
        "agreed_at": None if row is None else row.agreed_at, "problem": "not asked yet" if row is None else row.problem,
    }
