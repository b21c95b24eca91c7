"""Who is let in by what: tokens, sessions, passwords and peers, as the ledger's events say (V12, docs/format.md 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import grants
from archive.access.permissions import OBJECT, Permission
from archive.access.roles import names
from archive.db.tables import (
    api_token,
    archive_state,
    boundary,
    boundary_item,
    credential,
    datastore,
    peer,
    peer_ae_title,
    peer_network,
    principal,
    session,
)
from archive.ledger.audit import Kind, secret_digest
from archive.ledger.log import AuditFilter, AuditRow
from archive.services.core import Core
from archive.services.opened import opened
from archive.services.peer_settings import DEFAULTS, PeerSettings
from archive.services.proven import proven
from archive.services.retrace import Found, bodies, details
from archive.services.sharing_check import sharing

Row = dict[str, Any]


def admitted(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield tokens, sessions, passwords and peers that no event made, that say otherwise than theirs, or that came back."""
    yield from _tokens(core, tx)
    yield from _sessions(core, tx)
    yield from _passwords(core, tx)
    yield from proven(core, tx)
    yield from _peers(core, tx)
    yield from _configuration(core, tx)
    yield from opened(core, tx)
    yield from sharing(core, tx)


def _tokens(core: Core, tx: sa.Connection) -> Iterator[Found]:
    made: dict[int, Row] = {}
    ended: set[int] = set()
    for event in details(core, tx, Kind.TOKEN_CHANGED):
        if event.get("what") == "made":
            made.setdefault(event["id"], event)
        elif event.get("what") == "revoked":  # newest first: what was made before had that number before
            ended.update(key for key in (event["id"], *event.get("besides", ())) if key not in made)
    live = sa.select(api_token, principal.c.removed_at, boundary.c.owner_id, boundary.c.not_after.label("bounded_until")).join(
        principal, principal.c.id == api_token.c.principal_id).outerjoin(boundary, boundary.c.id == api_token.c.boundary_id)
    for row in tx.execute(live).all():
        said = made.get(row.id)
        if said is None:
            yield "V12", f"token {row.id} was made by no event", ""
            continue
        if row.id in ended and row.revoked_at is None:
            yield "V12", f"token {row.id} counts again, although it was revoked", ""
        elif row.id not in ended and row.revoked_at is not None and row.removed_at is None:
            yield "V12", f"token {row.id} was ended by no event", ""
        now: Row = {
            "owner": row.principal_id, "permissions": names(Permission(row.permissions)), "until": row.not_after.isoformat(),
            "secret": secret_digest(bytes(row.secret_hmac)),
        }
        bounds = _bounds(tx, row)
        wrong = any(name in said and said[name] != value for name, value in now.items())
        wrong = wrong or (said.get("parent", 0), said.get("networks", [])) != (row.parent_id or 0, row.networks.split())
        bounded = sorted([*(tuple(one) for one in said["objects"]), *(("datastore", name) for name in said.get("datastores", ()))])
        if wrong or sorted(bounds) != bounded or (row.boundary_id is not None and "owner" in said and (
            row.owner_id != row.principal_id or row.bounded_until != row.not_after
        )):
            yield "V12", f"token {row.id} is not the one that was made", ""


def _bounds(tx: sa.Connection, token: Any) -> list[tuple[str, str]]:
    """Return what a token is bounded to; nothing that was ever made where an item gives other permissions than the token."""
    query = sa.select(boundary_item.c.scope_key, boundary_item.c.permissions).where(boundary_item.c.boundary_id == token.boundary_id)
    items = tx.execute(query).all()
    if any(item.permissions != int(Permission(token.permissions) & OBJECT) for item in items):
        return [("", "")]
    named = {**grants.named(tx, {item.scope_key for item in items}), **_whole(tx)}
    return [(str(level), value) for level, value in (named.get(item.scope_key, ("", "")) for item in items)]


def _whole(tx: sa.Connection) -> dict[int, tuple[str, str]]:
    """Return what stands for each datastore as a whole."""
    return {row.id * 4: ("datastore", row.name) for row in tx.execute(sa.select(datastore.c.id, datastore.c.name))}


@dataclass(slots=True)
class _Sessions:
    """What events say of sessions: begun by whom, ended, and when all others of a principal ended."""

    begun: dict[int, tuple[int, Row]] = field(default_factory=dict)
    stepped: dict[int, Row] = field(default_factory=dict)
    lifted: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    closed: list[tuple[int, datetime, int | None]] = field(default_factory=list)

    def take(self, event: AuditRow, body: Row) -> None:
        """Take in an event."""
        subject, detail = body.get("subject", {}), body["detail"]
        if event.kind == Kind.SIGNED_IN.label:
            self.begun[subject.get("session")] = subject["principal"], detail
        elif event.kind == Kind.STEPPED_UP.label:
            self.stepped.setdefault(subject.get("session"), detail["session"])  # the last one comes first
        elif event.kind == Kind.SESSION_ENDED.label:
            self.over.add(detail["session"])
        elif event.kind == Kind.FACTOR_CHANGED.label:
            self._factor(event, subject, detail)
        elif event.kind == Kind.SIGNED_OUT.label:
            self.over.add(subject.get("session"))
        elif detail.get("what") == "own":
            self.closed.append((subject["principal"], event.at, subject.get("session")))
        elif "id" in detail and detail.get("what") in ("reset", "disabled", "removed"):
            self.closed.append((detail["id"], event.at, None))

    def _factor(self, event: AuditRow, subject: Row, detail: Row) -> None:
        if detail.get("what") == "added":
            self.lifted.add(subject.get("session", 0))
            if detail.get("alone"):
                self.closed.append((subject["principal"], event.at, subject.get("session")))
        elif detail.get("what") == "reset":
            self.closed.append((detail["id"], event.at, None))

    def said_of(self, row: Any) -> Row | None:
        """Return what events say of a session, nothing when none began it, no key of what an earlier release left unsaid."""
        who, detail = self.begun.get(row.id, (0, {}))
        if who != row.principal_id:
            return None
        said: Row = {**detail.get("session", {}), **self.stepped.get(row.id, {})}
        levels = [one["level"] for one in (detail.get("session", {}), self.stepped.get(row.id, {})) if "level" in one]
        if levels:
            said["level"] = 2 if row.id in self.lifted else max(levels)
        return said

    def ended(self, row: Any) -> bool:
        """Whether the session was ended by an event."""
        return row.id in self.over or any(
            who == row.principal_id and at > row.created_at and kept != row.id for who, at, kept in self.closed
        )


def _sessions(core: Core, tx: sa.Connection) -> Iterator[Found]:
    rows = tx.execute(sa.select(session).where(session.c.revoked_at.is_(None), session.c.absolute_until > core.clock())).all()
    if not rows:
        return
    said = _Sessions()
    wanted = (
        Kind.SIGNED_IN, Kind.SIGNED_OUT, Kind.PASSWORD_CHANGED, Kind.USER_CHANGED, Kind.STEPPED_UP, Kind.SESSION_ENDED,
        Kind.FACTOR_CHANGED,
    )
    for event in bodies(core, tx, AuditFilter(kinds=wanted, since=min(row.created_at for row in rows))):
        if event.body is not None:
            said.take(event, event.body)
    for row in rows:
        begun = said.said_of(row)
        now: Row = {
            "of": secret_digest(bytes(row.token_sha256)), "until": row.absolute_until.isoformat(), "level": row.auth_level,
            "idle_s": row.idle_s, "authn": row.authn_at.isoformat(),
        }
        if begun is None:
            yield "V12", f"session {row.id} was begun by no event", ""
        elif any(now[name] != value for name, value in begun.items()) or row.idle_until > row.absolute_until:
            yield "V12", f"session {row.id} is not the one that was begun", ""
        if said.ended(row):
            yield "V12", f"session {row.id} counts again, although it ended", ""


def _passwords(core: Core, tx: sa.Connection) -> Iterator[Found]:
    said: dict[int, str | None] = {}
    for event in bodies(core, tx, AuditFilter(kinds=(Kind.USER_CHANGED, Kind.PASSWORD_CHANGED))):
        if event.body is not None and (detail := event.body["detail"]).get("what") in ("added", "reset", "own", "remade"):
            who = detail.get("id", event.body.get("subject", {}).get("principal", 0))
            said.setdefault(who, detail.get("password"))
    rows = tx.execute(sa.select(credential, principal.c.removed_at).join(principal, principal.c.id == credential.c.principal_id)).all()
    holders = {row.principal_id for row in rows if row.kind == "password"}
    gone = sa.select(principal.c.id).where(principal.c.id.in_([who for who, of in said.items() if of and who not in holders]))
    for who in tx.execute(gone.where(principal.c.removed_at.is_(None))).scalars():
        yield "V12", f"the password of user {who} was taken away by no event", ""
    for row in rows:
        known = said.get(row.principal_id, None if 0 in said else "")  # 0: an event of an earlier release, without the id
        if known is None or known == secret_digest(row.data):
            continue
        signed_in = AuditFilter(kinds=(Kind.SIGNED_IN,), principal_id=row.principal_id)
        remade = next((event.body["detail"]["password"] for event in bodies(core, tx, signed_in)
                       if event.body is not None and "password" in event.body["detail"]), None)
        if remade != secret_digest(row.data):
            yield "V12", f"the password of user {row.principal_id} was set by no event", ""


def _peers(core: Core, tx: sa.Connection) -> Iterator[Found]:
    said: dict[int, Row] = {}
    for event in details(core, tx, Kind.PEER_CHANGED):
        said.setdefault(event["id"], event)
    query = sa.select(peer, datastore.c.name.label("datastore"), principal.c.removed_at).join(
        principal, principal.c.id == peer.c.principal_id).outerjoin(datastore, datastore.c.id == peer.c.datastore_id)
    there = set()
    for row in tx.execute(query).all():
        there.add(row.principal_id)
        known = said.get(row.principal_id)
        if known is None:
            yield "V12", f"peer {row.id} was added by no event", ""
            continue
        titles, networks = (
            sorted(tx.execute(sa.select(table.c[name]).where(table.c.peer_id == row.id)).scalars())
            for table, name in ((peer_ae_title, "ae_title"), (peer_network, "network"))
        )
        certificate = "" if row.certificate_sha256 is None else bytes(row.certificate_sha256).hex()
        if known["what"] == "peer removed":
            if row.enabled or titles or networks or certificate:
                yield "V12", f"peer {row.id} counts again, although it was removed", ""
            continue
        now: Row = {
            "name": row.name, "certificate": certificate, "datastore": row.datastore, "tls": row.tls, "host": row.host,
            "port": row.port or 0, "issuer": row.issuer_of_patient_id, "max_associations": row.max_associations or 0,
        }
        same = all(name not in known or known[name] == value for name, value in now.items())
        same = same and known.get("settings", DEFAULTS) == PeerSettings.of(row).shown()
        if not same or sorted(known["ae_titles"]) != titles or sorted(known["networks"]) != networks or not row.enabled:
            yield "V12", f"peer {row.id} is not as it was entered", ""
    for number in said.keys() - there:
        yield "V12", f"the peer of principal {number} is gone", ""
    for table in (peer_ae_title, peer_network):
        lost = sa.select(sa.func.count()).select_from(table).where(table.c.peer_id.not_in(sa.select(peer.c.id)))
        if tx.execute(lost).scalar_one():
            yield "V12", "an AE title or a network belongs to no peer", ""


def _configuration(core: Core, tx: sa.Connection) -> Iterator[Found]:
    kept = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == "configuration_sha256")).scalar()
    said = next((row["sha256"] for row in details(core, tx, Kind.CONFIGURED) if "sha256" in row), None)
    if kept != said:
        yield "V12", "the configuration that is noted is not the one that was recorded", ""

