"""What came after a snapshot of access: the ledger knows, so a rebuild gives back no more than there was at the end.

What was taken away since is taken away again, and denies are given again. What was given since does not come back: it stands there as
ended, with an event that says so, and whoever may gives it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from archive.access import factors, principals, recovery, roles
from archive.db.copies import number_on
from archive.db.tables import (
    api_token,
    audit_event,
    credential,
    datastore,
    factor,
    grants,
    membership,
    peer,
    peer_ae_title,
    peer_network,
    principal,
    recovery_code,
    role,
    role_assignment,
    rule_grant,
)
from archive.errors import LedgerBroken
from archive.ledger.audit import KINDS, Kind, secret_digest
from archive.ledger.bodies import Bodies, parse
from archive.services import bound, opened, requests_ended, rules_check, sharing_check
from archive.services.core import Core
from archive.services.peer_settings import PeerSettings
from archive.services.snapshot import CHANGING
from archive.services.targets import NOWHERE, Placed

TAKEN = (*CHANGING, Kind.ACCESS_REQUESTED, Kind.SHARE_OPENED)
"""What counts here; a view of a link is no reason for a snapshot."""
Detail = dict[str, Any]
Tell = Callable[[Kind, Detail], None]
"""Records an event of what the rebuild ended."""
_BECAUSE = "lost with the index"
_NEW = {"added": "", "group added": "group", "peer added": "device"}
_PAIRS = {
    "enabled": "on", "disabled": "on", "removed": "there", "peer removed": "there", "joined": "group", "left": "group",
    "assigned": "role", "withdrawn": "role", "peer renewed": "certificate", "peer set": "settings",
}


class Later:
    """The events since a snapshot, oldest first."""

    def __init__(self, tx: sa.Connection, about: dict[sa.Table, dict[int, Placed]], tell: Tell, at: datetime) -> None:
        """Work in one transaction; `about` gets what grants are about."""
        self._tx, self._about, self._tell, self._at = tx, about, tell, at
        self._states: dict[tuple[Any, ...], tuple[str, Kind, Detail, datetime]] = {}
        self._grants: dict[int, tuple[Detail, list[list[str]], datetime]] = {}
        self._revoked: dict[int, datetime] = {}
        self._came: dict[int, tuple[str, str]] = {}
        self._proofs: dict[int, list[tuple[Detail, datetime]]] = {}
        self._asked: dict[str, Detail] = {}
        self._opened: list[tuple[Kind, Detail, datetime]] = []
        self.taken = self.ended = 0

    def take(self, kind: Kind, body: Detail, at: datetime) -> None:
        """Take the next event."""
        said, what = body["detail"], str(body["detail"].get("what"))
        who = said.get("id") or body.get("subject", {}).get("principal")
        if self._of_factors_or_roles(kind, what, said | {"objects": body["objects"]}, at):
            return
        if kind is Kind.REVOKED:
            self._revoked[said["id"]] = at
        elif kind is Kind.ACCESS_REQUESTED:
            requests_ended.later(self._tx, said, body.get("subject", {}).get("principal"), at)
        elif kind is Kind.GRANTED and "id" in said:
            self._grants[said["id"]] = (said, body["objects"], at)
            if "subject" in said:  # the first owner came by an event that has no id
                self._came.setdefault(said["subject"], (said["to"], "user"))
        elif kind is Kind.TOKEN_CHANGED and what == "revoked":
            self._end(api_token, api_token.c.id.in_([said["id"], *said.get("besides", ())]), at)
        elif kind is Kind.PASSWORD_CHANGED:
            self._password(int(who), said)
        elif kind in (Kind.USER_CHANGED, Kind.ROLE_CHANGED, Kind.PEER_CHANGED) and "id" in said:
            self._of_principal(what, kind, said, at)

    def _of_principal(self, what: str, kind: Kind, said: Detail, at: datetime) -> None:
        if what in _NEW:
            self._came[said["id"]] = (said["name"], _NEW[what] or str(said.get("principal_kind", "user")))
        elif what in _PAIRS:
            self._states[said["id"], _PAIRS[what], said.get("group"), said.get("role")] = (what, kind, said, at)

    def _of_factors_or_roles(self, kind: Kind, what: str, said: Detail, at: datetime) -> bool:
        if kind in opened.KINDS:
            self._opened.append((kind, said, at))
        elif kind is Kind.FACTOR_CHANGED:
            self._proofs.setdefault(said["id"], []).append((said, at))
        elif kind is Kind.ROLE_CHANGED and what == "sign-in":
            asks = {"mfa_level": int(said["second_factor"]), "idle_s": said["idle_s"], "max_session_s": said["max_session_s"]}
            self._asked[said["name"]] = asks
        elif kind is Kind.ROLE_CHANGED and what == "added":
            self._role(said, at)
        elif kind is Kind.USER_CHANGED and what in ("bound", "unbound"):
            bound.later(self._tx, said, self._tell)
        elif kind is Kind.SHARE_OPENED:
            sharing_check.opened(self._tx, said, at)
        elif kind in sharing_check.KINDS:
            sharing_check.later(self._tx, said, at)
        elif kind is Kind.RULE_CHANGED:
            rules_check.later(self._tx, said, at, self._tell)
        elif kind is Kind.ROLE_CHANGED and what in ("changed", "removed") and "role_id" in said:
            self._role_changed(what, said, at)
        else:
            return kind is Kind.PASSWORD_CHANGED and what == "remade"
        return True

    def finish(self) -> None:
        """Do what all of them together come to."""
        tx = self._tx
        there = set(tx.execute(sa.select(principal.c.id)).scalars())
        for key, (name, sort) in self._came.items():
            if key not in there:
                self._gone(key, name, sort)
        for what, kind, said, at in self._states.values():
            row = tx.execute(sa.select(principal).where(principal.c.id == said["id"], principal.c.removed_at.is_(None))).first()
            if row is not None:
                self._state(row, what, kind, said, at)
        for who, events in self._proofs.items():
            self._proven(who, events)
        for name, asks in self._asked.items():
            tx.execute(sa.update(role).where(role.c.name == name).values(**asks))
        for number, (said, objects, at) in self._grants.items():
            self._grant(number, said, objects, at)
        for number, at in self._revoked.items():
            self._end(grants, grants.c.id == number, at)
        for kind, said, at in self._opened:
            opened.later(tx, kind, said, at)
        number_on(tx, (principal, grants, role, peer))

    # -------------------------------------------------------------------------------------------------------------------------------

    def _end(self, table: sa.Table, which: sa.ColumnElement[bool], at: datetime) -> int:
        count = self._tx.execute(sa.update(table).where(which, table.c.revoked_at.is_(None)).values(revoked_at=at)).rowcount
        self.taken += count
        return int(count)

    def _password(self, who: int, said: Detail) -> None:
        """The one before counts no more, and the new one is not known: it is set at the console."""
        gone = self._tx.execute(sa.delete(credential).where(credential.c.principal_id == who)).rowcount
        self.taken += gone
        if gone:
            self._tell(Kind.PASSWORD_CHANGED, {"what": "reset", "id": who, "name": str(said.get("name", "")), "because": _BECAUSE})

    def _proven(self, who: int, events: list[tuple[Detail, datetime]]) -> None:
        """Second factors: what went since goes; what came since is not known, so a password alone must not stand in for it."""
        tx, lost = self._tx, False
        if tx.execute(sa.select(principal.c.id).where(principal.c.id == who, principal.c.removed_at.is_(None))).first() is None:
            return
        for said, at in events:
            what = said["what"]
            if what == "removed":
                tx.execute(sa.delete(factor).where(factor.c.id == said["factor"], factor.c.principal_id == who))
            elif what == "reset":
                factors.clear(tx, who)
                lost = False
            elif what in ("added", "codes"):
                lost = lost or what == "added"
                recovery.clear(tx, who)
            elif what == "code used":
                for row in tx.execute(sa.select(recovery_code).where(recovery_code.c.principal_id == who)).all():
                    if secret_digest(bytes(row.code_hmac)) == said["code"]:
                        tx.execute(sa.update(recovery_code).where(recovery_code.c.id == row.id).values(used_at=at))
        left = factors.of(tx, who)
        if lost and not left:
            name = tx.execute(sa.select(principal.c.name).where(principal.c.id == who)).scalar_one()
            self._password(who, {"name": name})
        self.taken += 1
        self._tell(Kind.FACTOR_CHANGED, {
            "what": "rebuilt", "id": who, "because": _BECAUSE, "factors": [[one.id, secret_digest(one.sealed), one.kind] for one in left],
            "codes": [secret_digest(one) for one in recovery.kept(tx, who)],
        })

    def _role(self, said: Detail, at: datetime) -> None:
        """A role gives nothing to anyone by itself, but grants and denies name it."""
        if self._tx.execute(sa.select(role.c.id).where(sa.or_(role.c.id == said["id"], role.c.name == said["name"]))).first() is None:
            bits = int(roles.parse(tuple(said["permissions"])))
            row = {"id": said["id"], "name": said["name"], "permissions": bits, "builtin": False, "created_at": at}
            self._tx.execute(sa.insert(role), row)

    def _role_changed(self, what: str, said: Detail, at: datetime) -> None:
        """A role is what it was made last, and its grants with it: the grants themselves are those of the snapshot."""
        row = self._tx.execute(sa.select(role).where(role.c.name == said["name"])).mappings().first()
        if row is None or row["builtin"]:
            return
        if what == "removed":
            self._tx.execute(sa.update(role).where(role.c.id == row["id"]).values(removed_at=at))
        else:
            roles.put(self._tx, row["id"], roles.parse(tuple(said["permissions"])))
        self.taken += 1

    def _gone(self, key: int, name: str, kind: str) -> None:
        """Keep the place of somebody who came since, so that nobody new is taken for them in the ledger."""
        self._tx.execute(sa.insert(principal), {
            "id": key, "kind": kind, "name": f"{name}/{key}", "enabled": False, "created_at": self._at, "disabled_at": self._at,
            "removed_at": self._at,
        })
        device = kind == "device"
        if device:
            place = self._tx.execute(sa.select(sa.func.min(datastore.c.id))).scalar_one()
            self._tx.execute(sa.insert(peer), {
                "principal_id": key, "datastore_id": place, "name": f"{name}/{key}", "enabled": False, "created_at": self._at,
            })
        if self._states.get((key, "there", None, None)) is None:
            self.ended += 1
            said: Detail = {"what": "peer removed" if device else "removed", "name": name, "id": key, "because": _BECAUSE}
            if device:
                said |= {"ae_titles": [], "networks": [], "certificate": ""}
            self._tell(Kind.PEER_CHANGED if device else Kind.USER_CHANGED, said)

    def _state(self, row: Any, what: str, kind: Kind, said: Detail, at: datetime) -> None:
        tx = self._tx
        if what in ("disabled", "enabled") and row.enabled != (what == "enabled"):
            if what == "enabled":
                self._told(kind, said, "disabled")
            else:
                principals.set_enabled(tx, row.id, enabled=False, at=at)
                self.taken += 1
        elif what in ("removed", "peer removed"):
            if what == "peer removed":
                self._peer_gone(row)
            principals.remove(tx, row.id, row.name, by=row.id, at=at)
            self.taken += 1
        elif what in ("left", "joined"):
            group = sa.select(principal.c.id).where(principal.c.name == said["group"], principal.c.kind == "group").scalar_subquery()
            gone = sa.delete(membership).where(membership.c.principal_id == row.id, membership.c.group_id == group)
            self.taken += tx.execute(gone).rowcount
            if what == "joined":
                self._told(kind, said, "left")
        elif what in ("withdrawn", "assigned"):
            held = sa.select(role.c.id).where(role.c.name == said["role"]).scalar_subquery()
            self._end(role_assignment, sa.and_(role_assignment.c.principal_id == row.id, role_assignment.c.role_id == held), at)
            if what == "assigned":
                self._told(kind, said, "withdrawn")
        elif what in ("peer renewed", "peer set"):
            self.taken += tx.execute(sa.update(peer).where(peer.c.principal_id == row.id).values(_of_peer(what, said))).rowcount

    def _peer_gone(self, row: Any) -> None:
        number = sa.select(peer.c.id).where(peer.c.principal_id == row.id).scalar_subquery()
        for table in (peer_ae_title, peer_network):
            self._tx.execute(sa.delete(table).where(table.c.peer_id == number))
        gone = {"enabled": False, "certificate_sha256": None, "name": f"{row.name}/{row.id}"}
        self._tx.execute(sa.update(peer).where(peer.c.principal_id == row.id).values(**gone))

    def _told(self, kind: Kind, said: Detail, what: str) -> None:
        self.ended += 1
        kept: Detail = {name: said[name] for name in ("name", "id", "role", "group", "group_id") if name in said}
        self._tell(kind, {**kept, "what": what, "because": _BECAUSE})

    def _grant(self, number: int, said: Detail, objects: list[list[str]], at: datetime) -> None:
        tx = self._tx
        if tx.execute(sa.select(grants.c.id).where(grants.c.id == number)).first() is not None:
            return
        place = tx.execute(sa.select(datastore.c.id).where(datastore.c.name == said["datastore"])).scalar()
        to = tx.execute(sa.select(principal.c.id).where(principal.c.id == said.get("subject"))).scalar()
        what = tx.execute(sa.select(role).where(role.c.name == said["role"])).first() if said["role"] else None
        if place is None or to is None or (what is None and said["role"]):
            return
        bits = int(roles.parse(tuple(said["permissions"]))) if what is None else what.permissions
        deny = said["effect"] == "deny"
        tx.execute(sa.insert(grants), {
            "id": number, "datastore_id": place, "subject_id": to, "effect": 0 if deny else 1,
            "role_id": None if what is None else what.id, "permissions": bits, "scope_key": NOWHERE, "modality": said.get("modality", ""),
            "not_before": datetime.fromisoformat(said["from"]), "not_after": datetime.fromisoformat(said["until"]),
            "revoked_at": None if deny else self._revoked.get(number, self._at), "reason": said.get("reason", ""), "created_at": at,
            "kind": said.get("kind", "standing"), "depth_left": said.get("depth", 0), "parent_id": said.get("parent"),
            "need_context": said.get("need_context", 0), **said.get("conditions", {}),
        })
        if "rule" in said:
            tx.execute(sa.insert(rule_grant), {"grant_id": number, "rule_id": said["rule"]})
        self._about.setdefault(grants, {})[number] = (place, _target(said["level"], objects))
        if deny:
            self.taken += 1
        elif number not in self._revoked:
            self.ended += 1
            self._tell(Kind.REVOKED, {**{name: value for name, value in said.items() if name != "objects"}, "because": _BECAUSE})


def _of_peer(what: str, said: Detail) -> Detail:
    """Return what a peer is now: what was before counts no more, and the event names what is new."""
    if what == "peer set":
        return PeerSettings().changed(said.get("settings", {})).values()
    new = bytes.fromhex(said.get("certificate") or "")
    return {"certificate_sha256": new} if new else {"enabled": False}


def _target(level: str, objects: list[list[str]]) -> tuple[str, ...]:
    """Return what an event is about; it names patients without their issuer, and series without their study."""
    value = objects[0][1] if objects else ""
    if level == "everything" or not value:
        return ("everything",)  # a deny hides rather too much than too little
    return ({"patient": "patient-id", "series": "series-uid"}.get(level, level), value)


def apply_later(core: Core, tx: sa.Connection, leaves: int, about: dict[sa.Table, dict[int, Placed]], tell: Tell) -> Later:
    """Do what the events from number `leaves` on come to; `about` gets what grants are about. A body that does not open says nothing."""
    later, bodies = Later(tx, about, tell, core.clock()), Bodies(core.keyring)
    since = (
        sa.select(audit_event.c.n, audit_event.c.at, audit_event.c.kind, audit_event.c.body)
        .where(audit_event.c.n >= leaves, audit_event.c.kind.in_([kind.label for kind in TAKEN])).order_by(audit_event.c.n)
    )
    for row in tx.execute(since).all():
        with suppress(LedgerBroken):  # whoever rebuilds is told
            if row.body is not None and (opened := bodies.open(row.n, bytes(row.body))) is not None:
                later.take(KINDS[row.kind], parse(opened[1]), row.at)
    later.finish()
    return later

