"""What is looked for in the audit log: each rule takes new events and says what it found. Nothing here names a patient.

A rule is asked once for each batch of new events, and looks back as far as it needs by the indexes of time and principal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from archive.db.tables import audit_event, audit_object, ledger_leaf, login_attempt
from archive.ledger import objects
from archive.ledger.audit import Kind
from archive.services.alert_look import SEEING, Found, Look, Rule, whence
from archive.services.alert_persons import colleague_record, own_record, unrelated_after_hours, watched_record
from archive.services.alert_travel import impossible_travel

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OWN_HABIT = timedelta(days=30)
HABIT_FACTOR = 4
SHORT = timedelta(minutes=10)
KNOWN_FOR = timedelta(days=180)
SIGN_INS = 500
LEAVING = tuple(kind.label for kind in (Kind.EXPORTED, Kind.SHARED))
CERTIFICATE = ("certificate", "AE title")
_E, _O = audit_event.c, audit_object.c


def mass_look_up(look: Look) -> Iterator[Found]:
    """Many different studies in an hour: more than the limit, and more than four times what is usual for that account."""
    for who, last in look.last_by_principal(SEEING).items():
        seen = _studies(look.tx, who, last.at - HOUR, last.at)
        if seen <= look.settings.studies_an_hour:
            continue
        usual = _usual(look.tx, who, last.at)
        if seen > HABIT_FACTOR * usual:
            yield Found("mass-look-up", last.n, str(who), {"studies_in_an_hour": seen, "usual": usual}, who)


def export_volume(look: Look) -> Iterator[Found]:
    """More exports and shares in a day than the limit."""
    for who, last in look.last_by_principal(LEAVING).items():
        count = _count(look.tx, who, LEAVING, last.at - DAY, last.at)
        if count > look.settings.exports_a_day:
            yield Found("export-volume", last.n, str(who), {"exports_in_a_day": count}, who)


def off_hours_export(look: Look) -> Iterator[Found]:
    """Something left outside working hours, by the clock of this machine."""
    for one in look.of(Kind.EXPORTED, Kind.SHARED):
        local = one.at.astimezone()
        if not look.settings.working(local.weekday(), local.hour * 60 + local.minute):
            yield Found("off-hours-export", one.n, str(one.principal_id), {"kind": one.kind}, one.principal_id)


def enumeration(look: Look) -> Iterator[Found]:
    """Many questions for what is not there, or not theirs, within ten minutes."""
    for who, last in look.last_by_principal((Kind.DENIED.label,)).items():
        count = _count(look.tx, who, (Kind.DENIED.label,), last.at - SHORT, last.at)
        if count >= look.settings.refused_in_ten_minutes:
            yield Found("enumeration", last.n, str(who), {"refused_in_ten_minutes": count}, who)


def spraying(look: Look) -> Iterator[Found]:
    """Failed sign-ins at many accounts from one network within ten minutes."""
    a = login_attempt.c
    for one in look.of(Kind.SIGNIN_FAILED):
        then = one.at - look.ahead  # attempts are by the machine's clock
        counted = (
            sa.select(a.network_hmac, sa.func.count(a.account_hmac.distinct()).label("accounts"))
            .where(a.at > then - SHORT, a.at <= then + SHORT, a.succeeded == sa.false()).group_by(a.network_hmac)
            .having(sa.func.count(a.account_hmac.distinct()) >= look.settings.accounts_from_one_network)
        )
        for row in look.tx.execute(counted):
            said = look.body(one.n).get("detail") or {}
            shown = {"accounts": row.accounts, "address": said.get("address", "")}
            yield Found("spraying", one.n, bytes(row.network_hmac).hex()[:16], shown)
        return


def certificate_mismatch(look: Look) -> Iterator[Found]:
    """A device that came with a certificate or AE title that is not the one it is known by."""
    for one in look.of(Kind.ASSOCIATION_REJECTED):
        said = look.body(one.n).get("detail") or {}
        if said.get("certificate") and any(word in str(said.get("reason")) for word in CERTIFICATE):
            shown = {name: said.get(name, "") for name in ("calling_ae_title", "address", "reason", "certificate")}
            yield Found("certificate-mismatch", one.n, f"{shown['calling_ae_title']} {shown['address']}", shown)


def break_glass(look: Look) -> Iterator[Found]:
    """Somebody opened what their grants do not: it is to be reviewed."""
    for one in look.of(Kind.BREAK_GLASS_STARTED):
        yield Found("break-glass", one.n, f"{one.principal_id} {one.n}", {}, one.principal_id)


def integrity(look: Look) -> Iterator[Found]:
    """A verification that found something."""
    for one in look.of(Kind.VERIFIED):
        if one.outcome:
            said = look.body(one.n).get("detail") or {}
            codes = {name: said[name] for name in ("what", "findings", "codes", "level") if name in said}
            yield Found("integrity", one.n, "verify", codes)


def audit_gap(look: Look) -> Iterator[Found]:
    """The archive started, and nothing says that it had stopped since its start before."""
    for one in look.of(Kind.STARTED):
        # Others may be later than the stop: what a command did meanwhile, what this start found.
        own = sa.select(_E.kind).where(
            _E.n < one.n, _E.principal_id.is_(None), _E.kind.in_([Kind.STARTED.label, Kind.STOPPED.label])
        )
        if look.tx.execute(own.order_by(_E.n.desc()).limit(1)).scalar() == Kind.STARTED.label:
            said = sa.select(_E.at).where(_E.n < one.n, _E.kind.not_in([Kind.REPLAYED.label, Kind.WITNESS.label]))
            last = look.tx.execute(said.order_by(_E.n.desc()).limit(1)).scalar_one()
            yield Found("audit-gap", one.n, str(one.n), {"silent_s": int((one.at - last).total_seconds())})


def witness_silent(look: Look) -> Iterator[Found]:
    """A witness outside has not answered for longer than the configuration allows."""
    for one in look.of(Kind.WITNESS):
        said = look.body(one.n).get("detail") or {}
        if said.get("what") == "silent":
            yield Found("witness-silent", one.n, str(said.get("witness")), {name: said.get(name, 0) for name in ("witness", "hours")})


def witness_against(look: Look) -> Iterator[Found]:
    """A witness outside remembers another ledger, or was made to forget this one."""
    for one in look.of(Kind.WITNESS):
        said = look.body(one.n).get("detail") or {}
        if said.get("what") in {"against", "begins anew"}:
            yield Found("witness-against", one.n, str(said.get("witness")), {name: said.get(name, 0) for name in ("witness", "what")})


def new_place(look: Look) -> Iterator[Found]:
    """A sign-in with a program and from a network that this account never came by, when it has come before."""
    for one in look.of(Kind.SIGNED_IN):
        if one.principal_id is None:
            continue
        now = whence(look.body(one.n))
        earlier = look.tx.execute(
            sa.select(_E.n).where(
                _E.principal_id == one.principal_id, _E.kind == Kind.SIGNED_IN.label, _E.n < one.n, _E.at > one.at - KNOWN_FOR
            ).order_by(_E.n.desc()).limit(SIGN_INS)
        ).scalars().all()
        known = [whence(look.body(n)) for n in earlier]
        if known and all(now[0] != network and now[1] != program for network, program, _ in known):
            shown = {"network": now[0], "program": now[1][:100]}
            yield Found("new-device-and-network", one.n, str(one.principal_id), shown, one.principal_id)


RULES: dict[str, tuple[Literal["warning", "urgent"], str, Rule]] = {
    "mass-look-up": ("urgent", "one account opened far more studies in an hour than is usual for it", mass_look_up),
    "export-volume": ("warning", "one account exported or shared unusually much in a day", export_volume),
    "off-hours-export": ("warning", "something was exported or shared outside working hours", off_hours_export),
    "enumeration": ("warning", "one account asked again and again for what is not there or not theirs", enumeration),
    "spraying": ("urgent", "failed sign-ins at many accounts from one network", spraying),
    "certificate-mismatch": ("warning", "a device came with another certificate or AE title than it is known by", certificate_mismatch),
    "break-glass": ("urgent", "somebody opened images by break-glass; review why", break_glass),
    "integrity": ("urgent", "a verification found something", integrity),
    "audit-gap": ("warning", "the archive started without having been stopped", audit_gap),
    "witness-silent": ("warning", "a witness outside has not answered for long", witness_silent),
    "witness-against": ("urgent", "a witness outside remembers another ledger than this one", witness_against),
    "new-device-and-network": ("warning", "a sign-in with a program and from a network this account never came by", new_place),
    "impossible-travel": ("urgent", "two sign-ins of one account that nobody could travel between in that time", impossible_travel),
    "own-record": ("warning", "somebody opened images of a patient of their own name", own_record),
    "colleague-record": ("warning", "somebody opened images of a patient with a colleague's name", colleague_record),
    "unrelated-after-hours": (
        "warning", "images opened for the first time, outside working hours, by somebody nothing ties to the patient",
        unrelated_after_hours,
    ),
    "watched-record": ("urgent", "somebody opened images of a patient the clinic watches over", watched_record),
}
"""Name -> severity, what it means, rule."""

LOOKED_AT = tuple(sorted({*SEEING, *(kind.label for kind in (
    Kind.DENIED, Kind.SIGNED_IN, Kind.SIGNIN_FAILED, Kind.ASSOCIATION_REJECTED, Kind.BREAK_GLASS_STARTED, Kind.VERIFIED, Kind.STARTED,
    Kind.WITNESS,
))}))
"""The kinds of events any rule begins with."""


def _studies(tx: sa.Connection, who: int, since: datetime, until: datetime) -> int:
    """Count the different studies somebody saw; what an event is about first is its study.

    Rows of objects come with the checkpoint: what came after the newest is told by the leaves themselves.
    """
    theirs = (_E.principal_id == who, _E.at > since, _E.at <= until, _E.kind.in_(SEEING), _E.outcome == 0)
    kept = sa.select(_O.ref).distinct().select_from(audit_event.join(audit_object, _O.n == _E.n)).where(*theirs, _O.position == 0)
    fresh = (
        sa.select(ledger_leaf.c.data).select_from(audit_event.join(ledger_leaf, ledger_leaf.c.n == _E.n))
        .where(*theirs, _E.n >= objects.covered(tx))
    )
    first = {refs[0] for data in tx.execute(fresh).scalars() if (refs := objects.named(data))}
    return len(first.union(map(bytes, tx.execute(kept).scalars())))


def _usual(tx: sa.Connection, who: int, at: datetime) -> int:
    """Return the 95th percentile of different studies in an hour, of the hours somebody worked in the last thirty days."""
    hour = sa.type_coerce(_E.at, sa.BigInteger) / sa.literal_column("3600000000")
    counted = tx.execute(
        sa.select(sa.func.count(_O.ref.distinct())).select_from(audit_event.join(audit_object, _O.n == _E.n)).where(
            _E.principal_id == who, _E.at > at - OWN_HABIT, _E.at <= at - HOUR, _E.kind.in_(SEEING), _E.outcome == 0, _O.position == 0,
        ).group_by(sa.cast(sa.func.floor(hour), sa.BigInteger))
    ).scalars().all()
    return sorted(counted)[(len(counted) * 95 - 1) // 100] if counted else 0


def _count(tx: sa.Connection, who: int, labels: Sequence[str], since: datetime, until: datetime) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(audit_event).where(
        _E.principal_id == who, _E.at > since, _E.at <= until, _E.kind.in_(labels)
    )).scalar_one())
