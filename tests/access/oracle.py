"""The rule of docs/access.md in plain Python, row by row: what the SQL condition is compared with."""

from __future__ import annotations

from datetime import datetime

from archive.access.permissions import Permission
from archive.access.subject import Subject
from tests.access import passed_on
from tests.access.worlds import Row, World, lineage


def caller_counts(w: World, subject: Subject, at: datetime) -> bool:
    """Whether the principal, its session and its token are still good."""
    me = w.of("principal", subject.principal_id)
    if not me["enabled"] or me["removed_at"] is not None or me["kind"] in ("console", "group"):
        return False
    if subject.session_id is not None:
        session = w.of("session", subject.session_id)
        if session["principal_id"] != me["id"] or session["revoked_at"] is not None or session["epoch"] != me["security_epoch"]:
            return False
        if at >= session["idle_until"] or at >= session["absolute_until"]:
            return False
    if subject.token_id is not None:
        chain = lineage(w, w.of("api_token", subject.token_id))
        if len(chain) != subject.token_depth:
            return False
        for token in chain:
            if token["principal_id"] != me["id"] or token["revoked_at"] is not None or at >= token["not_after"]:
                return False
            if token["boundary_id"] is not None and token["boundary_id"] not in subject.boundary_ids:
                return False
    return subject.share_id is None or share_counts(w, subject, at)


def share_counts(w: World, subject: Subject, at: datetime) -> bool:
    """Whether the link is the principal's own and still good, binds the subject as it says, and is open."""
    link, opened = w.of("share_link", subject.share_id or 0), w.of("share_session", subject.share_session_id or 0)
    if link["owner_id"] != subject.principal_id or link["revoked_at"] is not None or at >= link["not_after"]:
        return False
    if link["token_id"] != subject.token_id or subject.boundary_ids[:1] != (link["boundary_id"],):
        return False
    if opened["share_id"] != link["id"] or opened["revoked_at"] is not None:
        return False
    return bool(at < opened["idle_until"] and at < opened["absolute_until"])


def giver_may_share(w: World, grant: Row, se: Row, at: datetime) -> bool:
    """Whether whoever put it into an album may do all that it gives and share it, by a grant that came by no album."""
    giver = w.of("principal", grant["granted_by"])
    if not giver["enabled"] or giver["removed_at"] is not None or giver["kind"] in ("console", "group"):
        return False
    them, needed = Subject(giver["id"], "", "user", "internal"), grant["permissions"] | int(Permission.SHARE)
    theirs = [one for one in w.grants if applies(w, one, them, se, at)]
    if any(one["effect"] == 0 and one["permissions"] & needed for one in theirs):
        return False
    return any(
        one["effect"] == 1 and one.get("kind") != "shared" and one.get("parent_id") is None and not one["need_context"]
        and not needed & ~one["permissions"] for one in theirs
    )


def identities(w: World, principal_id: int, at: datetime) -> set[int]:
    """The principal and the groups it is in now."""
    found = {principal_id}
    for row in w.membership:
        group = w.of("principal", row["group_id"])
        live = row["not_before"] <= at < row["not_after"] and group["enabled"] and group["removed_at"] is None
        if row["principal_id"] == principal_id and live:
            found.add(group["id"])
    return found


def reaches(scope_key: int, se: Row) -> bool:
    """Whether a scope key names the archive, or the series' patient, study or itself."""
    number, level = divmod(scope_key, 4)
    return scope_key == 0 or (level == 1 and number == se["patient_pk"]) or (level == 2 and number == se["study_pk"]) or (
        level == 3 and number == se["id"]
    )


def names(scope_key: int, se: Row) -> bool:
    """Whether a boundary's key names the series: as a grant's, or its datastore as a whole."""
    return reaches(scope_key, se) or scope_key == se["datastore_id"] * 4


def applies(w: World, grant: Row, subject: Subject, se: Row, at: datetime) -> bool:
    """Whether a grant, allow or deny, speaks about this series to this caller now."""
    if grant["subject_id"] not in identities(w, subject.principal_id, at) or grant["datastore_id"] != se["datastore_id"]:
        return False
    if grant["revoked_at"] is not None or not grant["not_before"] <= at < grant["not_after"]:
        return False
    if grant["modality"] not in ("", se["modality"]):
        return False
    if grant["department_id"] is not None and grant["department_id"] != se["department_id"]:
        return False
    if (grant["study_date_from"] or grant["study_date_to"]) and not se["study_date"]:
        return False
    if grant["study_date_from"] and se["study_date"] < grant["study_date_from"]:
        return False
    if grant["study_date_to"] and se["study_date"] > grant["study_date_to"]:
        return False
    return reaches(grant["scope_key"], se)


def sees(w: World, subject: Subject, need: Permission, at: datetime, se: Row) -> bool:
    """Whether the caller may touch the series with every bit of `need`."""
    if se["n_instances"] == 0 or not caller_counts(w, subject, at):
        return False
    if subject.narrowed_by is not None and not sees(w, subject.narrowed_by, need, at, se):
        return False
    wanted = int(need | Permission.RESTRICTED) if se["restricted"] else int(need)
    if subject.share_id is not None:
        wanted |= int(Permission.SHARE)
    if subject.limit is not None and wanted & ~int(subject.limit):
        return False
    for boundary in (w.of("boundary", key) for key in subject.boundary_ids):
        if boundary["owner_id"] != subject.principal_id or at >= boundary["not_after"]:
            return False
        items = [item for item in w.boundary_item if item["boundary_id"] == boundary["id"]]
        if not any(not wanted & ~item["permissions"] and names(item["scope_key"], se) for item in items):
            return False
    allowed = False
    for grant in w.grants:
        if not applies(w, grant, subject, se, at):
            continue
        if grant["effect"] == 0 and grant["permissions"] & wanted:
            return False
        fits = grant["effect"] == 1 and not wanted & ~grant["permissions"] and not grant["need_context"] & ~subject.context
        if fits and passed_on.unbroken(w, grant, subject, se, wanted, at):
            allowed = allowed or grant.get("kind") != "shared" or giver_may_share(w, grant, se, at)
    return allowed


def visible(w: World, subject: Subject, need: Permission, at: datetime) -> tuple[set[int], set[int], set[int]]:
    """The ids of the series, studies and patients the caller may touch."""
    rows = [se for se in w.series if sees(w, subject, need, at, se)]
    return {se["id"] for se in rows}, {se["study_pk"] for se in rows}, {se["patient_pk"] for se in rows}


def entire(w: World, subject: Subject, need: Permission, at: datetime) -> set[int]:
    """The ids of the studies whose stored counts may be shown: one unconditional allow covers each, and nothing can hide a part."""
    if subject.boundary_ids or not caller_counts(w, subject, at):
        return set()
    if subject.limit is not None and need & ~subject.limit:
        return set()
    mine = [
        g for g in w.grants
        if g["subject_id"] in identities(w, subject.principal_id, at) and g["revoked_at"] is None and g["not_before"] <= at < g["not_after"]
    ]
    if any(g["effect"] == 0 for g in mine):
        return set()
    found: set[int] = set()
    besides = None if subject.narrowed_by is None else entire(w, subject.narrowed_by, need, at)
    for st in w.study:
        here = [g for g in mine if g["datastore_id"] == st["datastore_id"]]
        covering = [
            g for g in here
            if g["effect"] == 1 and not int(need) & ~g["permissions"] and not g["need_context"] & ~subject.context
            and g.get("kind") != "shared" and g.get("parent_id") is None
            and (g["modality"], g["department_id"], g["study_date_from"], g["study_date_to"]) == ("", None, "", "")
            and g["scope_key"] in (0, st["patient_pk"] * 4 + 1, st["id"] * 4 + 2)
        ]
        restricted = any(se["restricted"] for se in w.series if se["study_pk"] == st["id"])
        if covering and not restricted and (besides is None or st["id"] in besides):
            found.add(st["id"])
    return found
