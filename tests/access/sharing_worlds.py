"""Random archives (tests/access/worlds.py) with share links, their sessions, and grants that came by albums."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

from archive.access.permissions import Permission
from archive.access.subject import Subject
from tests.access import worlds
from tests.access.worlds import BASE, Row, World, bits, hour, maybe, scope_key, window

SHARE = int(Permission.SHARE)
READ = int(Permission.SEARCH | Permission.METADATA | Permission.PIXELS | Permission.SEND)


@dataclass
class SharingWorld(World):
    """A world with links."""

    share_link: list[Row] = field(default_factory=list)
    share_session: list[Row] = field(default_factory=list)


def draw(seed: int) -> SharingWorld:
    """Return the world of a seed: half of the allows came by an album of somebody, most hold SHARE."""
    r, plain = Random(seed + 7_000_000), worlds.draw(seed)
    w = SharingWorld(**{name: getattr(plain, name) for name in World.__dataclass_fields__})
    for _ in range(r.choice([8, 16])):
        w.grants.append({
            "id": len(w.grants) + 1000, "datastore_id": r.choice([1, 1, 2]), "subject_id": r.choice([1, 2, 3, 11, 12, 13]),
            "effect": r.choice([1, 1, 1, 1, 0]), "permissions": bits(r), "scope_key": scope_key(r, w),
            "modality": maybe(r, r.choice(["CT", "MR"]), 0.15, ""), "department_id": maybe(r, r.choice([7, 8]), 0.1),
            "study_date_from": maybe(r, "20210101", 0.1, ""), "study_date_to": maybe(r, "20210101", 0.1, ""), **window(r),
            "revoked_at": maybe(r, hour(1), 0.15), "need_context": r.choice([0, 0, 0, 1]), "created_at": BASE,
        })
    above = {row["ancestor_id"] for row in w.grant_lineage}
    for grant in w.grants:
        grant.setdefault("parent_id", None)
        grant.setdefault("depth_left", 0)
        album = grant["effect"] == 1 and grant["parent_id"] is None and grant["id"] not in above and r.random() < 0.5
        grant["permissions"] |= maybe(r, SHARE, 0.8, 0)
        grant["kind"] = "shared" if album else "standing"
        grant["granted_by"] = r.choice([2, 2, 3, 3, 1, 11, 13])
    for item in w.boundary_item:
        item["permissions"] |= maybe(r, SHARE, 0.9, 0)
    for key, bound in ((1, 1), (2, 2), (3, 3)):
        w.share_link.append({
            "id": key, "token_hmac": bytes([key]) * 32, "owner_id": r.choice([1, 1, 1, 2]), "datastore_id": 1, "boundary_id": bound,
            "token_id": maybe(r, r.choice(w.api_token)["id"], 0.25), "permissions": bits(r) | SHARE, "code_by": "apart", "views": 0,
            "created_at": BASE, "not_after": hour(r.choice([9, 9, 5])), "revoked_at": maybe(r, BASE, 0.15),
        })
        for _ in range(2):
            number = len(w.share_session) + 1
            w.share_session.append({
                "id": number, "share_id": key, "token_sha256": bytes([number]) * 32, "created_at": BASE, "last_seen_at": BASE,
                "idle_until": hour(r.choice([9, 9, 5])), "absolute_until": hour(r.choice([9, 9, 5])), "revoked_at": maybe(r, BASE, 0.15),
            })
    return w


def near(seed: int) -> SharingWorld:
    """Return a world in which somebody sees a series by an album, and by links, but for a flaw or two that may be fatal."""
    r = Random(seed + 9_000_000)
    plain = worlds.draw(seed)
    w = SharingWorld(**{name: getattr(plain, name) for name in World.__dataclass_fields__})
    se = r.choice([one for one in w.series if one["n_instances"]] or w.series)
    se |= {"n_instances": 3, "restricted": False}

    def flaw(right: Any, *wrong: Any) -> Any:
        return r.choice(wrong) if r.random() < 0.035 else right

    keys = {"patient_pk": 1, "study_pk": 2, "id": 3}
    covering = [se[name] * 4 + level for name, level in keys.items()]
    other = next((one for one in w.series if one["study_pk"] != se["study_pk"]), se)

    def grant(subject: int, *, deny: bool = False, kind: str = "standing") -> None:
        w.grants.append({
            "id": len(w.grants) + 1, "datastore_id": flaw(se["datastore_id"], 3 - se["datastore_id"]), "subject_id": subject,
            "effect": 0 if deny else 1, "permissions": flaw(READ | SHARE, READ, SHARE, READ & ~4 | SHARE), "scope_key": flaw(
                r.choice(covering), other["id"] * 4 + 3),
            "modality": flaw(r.choice(["", se["modality"]]), "XA"), "department_id": flaw(None, 99),
            "study_date_from": flaw("", "20990101"), "study_date_to": flaw("", "19000101"),
            "not_before": flaw(hour(4), hour(7)), "not_after": flaw(hour(9), hour(5)),
            "revoked_at": flaw(None, hour(1)), "need_context": flaw(0, 1), "created_at": BASE, "kind": kind,
            "granted_by": 2, "parent_id": None if kind == "shared" else flaw(None, 1), "depth_left": 0,
        })

    w.grants.clear()
    w.grant_lineage.clear()
    w.membership.clear()
    for person in w.principal:
        fine = {"enabled": flaw(True, False), "removed_at": flaw(None, BASE)}
        person |= {**fine, "kind": "group" if person["id"] in (11, 12, 13) else flaw("user", "console", "group")}
    for number, (member, group) in enumerate([(2, 12), (2, 13), (1, 11), (r.choice([1, 3]), 12)], 1):
        w.membership.append({"id": number, "principal_id": member, "group_id": group, "not_before": flaw(hour(4), hour(7)),
                             "not_after": hour(r.choice([9, 9, 9, 9, 5]))})
    grant(flaw(1, 11, 3), kind="shared")
    if r.random() < 0.85:
        grant(r.choice([2, 12, 12, flaw(2, 11, 3)]), kind=r.choice(["standing"] * 6 + ["shared"]))
    if r.random() < 0.25:
        grant(1)
    if r.random() < 0.25:
        grant(r.choice([2, 13, 13, 3, 11]), deny=True)
        w.grants[-1]["permissions"] = r.choice([SHARE, 1, 16, 16, READ])
    for item in w.boundary_item:
        item |= {"permissions": READ | SHARE, "scope_key": flaw(r.choice(covering), other["id"] * 4 + 3)}
    for bound in w.boundary:
        bound |= {"owner_id": 1, "not_after": hour(9)}
        w.boundary_item.append({"id": len(w.boundary_item) + 50, "boundary_id": bound["id"], "permissions": READ | SHARE,
                                "scope_key": se["study_pk"] * 4 + 2})
    for token in w.api_token:
        token |= {"permissions": READ | SHARE, "boundary_id": None, "principal_id": 1}
    for key in (1, 2, 3):
        w.share_link.append({
            "id": key, "token_hmac": bytes([key]) * 32, "owner_id": r.choice([1, 1, 1, 2]), "datastore_id": 1, "boundary_id": key,
            "token_id": flaw(None, 1), "permissions": READ | SHARE, "code_by": "apart", "views": 0, "created_at": BASE,
            "not_after": flaw(hour(9), hour(5)), "revoked_at": flaw(None, BASE),
        })
        w.share_session.append({
            "id": key, "share_id": key, "token_sha256": bytes([key]) * 32, "created_at": BASE, "last_seen_at": BASE,
            "idle_until": flaw(hour(9), hour(5)), "absolute_until": flaw(hour(9), hour(5)), "revoked_at": flaw(None, BASE),
        })
    return w


def visitors(seed: int, w: SharingWorld, count: int) -> list[tuple[Subject, Permission, datetime]]:
    """Return who asks for what: by links, mostly as they would really come in, and people whom albums reach."""
    r = Random(seed + 2_000_000)
    asked = []
    for _ in range(count):
        need, at = r.choice(worlds.NEEDS), hour(r.choice([4, 5, 6, 8]))
        if r.random() < 0.4:
            asked.append((Subject(r.choice([1, 1, 2, 3]), "someone", "user", "web", context=r.choice([0, 1, 3])), need, at))
            continue
        link = r.choice(w.share_link)
        opened = r.choice([one for one in w.share_session if one["share_id"] == link["id"]])
        me, token, bounds, depth = link["owner_id"], link["token_id"], (link["boundary_id"],), 1
        limit = Permission(link["permissions"])
        if token is not None:
            chain = worlds.lineage(w, w.of("api_token", token))
            depth = len(chain)
            bounds += tuple(one["boundary_id"] for one in chain if one["boundary_id"] is not None)
        if r.random() < 0.3:  # something does not fit
            wrong = r.choice(["session", "bounds", "none", "owner", "owner", "token", "link"])
            opened = r.choice(w.share_session) if wrong == "session" else opened
            bounds = {"bounds": (r.choice([1, 2, 3]),), "none": ()}.get(wrong, bounds)
            me = r.choice([1, 2, 3]) if wrong == "owner" else me
            link = r.choice(w.share_link) if wrong == "link" else link
            if wrong == "token":
                token = None if token is not None else r.choice(w.api_token)["id"]
                depth = 1 if token is None else len(worlds.lineage(w, w.of("api_token", token)))
        asked.append((Subject(
            me, "someone", "user", "share", token_id=token, token_depth=depth, boundary_ids=bounds, limit=limit, share_id=link["id"],
            share_session_id=opened["id"], context=r.choice([0, 3]),
        ), need, at))
    return asked
