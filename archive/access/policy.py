"""The one place that decides: function permissions by `require`, objects by a Scope inside the SQL that reads them.

There is no yes-or-no check on a fetched row, and nothing is cached: a change of grants, groups, sessions or tokens takes effect on
the next statement. Tokens of db.guard are made here alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy import ColumnElement, CursorResult, FromClause

from archive.access import lineage, predicate
from archive.access.permissions import FUNCTION, OBJECT, Permission
from archive.access.shape import Shape
from archive.access.subject import Subject
from archive.db import guard, tables
from archive.db.prepared import Prepared
from archive.errors import Forbidden, NotFound

_EVERY_BIT = (1 << 31) - 1
# As integers: operations on flags cost more than the statements they lead to are allowed to.
_FUNCTION, _NOT_OBJECT, _RESTRICTED, _SHARE = int(FUNCTION), ~int(OBJECT), int(Permission.RESTRICTED), int(Permission.SHARE)
_SEAL = object()
_BESIDES = "_besides"
_GRANT = tables.grants.alias("any_grant")
_ASSIGNMENT, _ROLE = tables.role_assignment.alias("assignment"), tables.role.alias("assigned_role")


class Internal(StrEnum):
    """Work of the archive itself, in nobody's name; each word stands for a place that was reviewed."""

    STORE = "store"
    REPLAY = "replay"
    REBUILD = "rebuild"
    RECONCILE = "reconcile"
    REMOVE = "remove"
    SHRED = "shred"
    IMPORT = "import"
    VERIFY = "verify"
    UPKEEP = "upkeep"
    PACKS = "packs"
    HEALTH = "health"
    BACKUP = "backup"
    ACCESS = "access"  # grants resolve the UIDs they are given
    DEMO = "demo"
    ALERTS = "alerts"  # whose images were opened


def system(reason: str) -> guard.Token:
    """Return a token for internal work on protected tables.

    Raises:
        ValueError: a reason that Internal does not list.
    """
    return guard.Token(f"system:{Internal(reason).value}")


def run_as(
    tx: sa.Connection, token: guard.Token, statement: sa.Executable, params: Any | None = None
) -> CursorResult[Any]:
    """Execute under a token made here; `params` as of Connection.execute."""
    return tx.execute(statement, params, execution_options={guard.OPTION: token})


@dataclass(frozen=True, slots=True)
class Scope:
    """The series one subject may touch with the permissions `need`, as SQL; only scope_of makes one.

    The conditions hold named parameters without values: `run` supplies them, any other way of executing fails. Two scopes in one
    statement need different prefixes and run with `also`.
    """

    token: guard.Token
    need: Permission
    parameters: Mapping[str, Any]
    shape: Shape
    whole: bool = False
    """Hint for choosing a plan, from `measured`; never a permission."""
    _seal: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a scope that policy did not make."""
        if self._seal is not _SEAL:
            message = "a Scope is made by policy.scope_of"
            raise TypeError(message)

    def series(self, se: FromClause) -> ColumnElement[bool]:
        """True for the rows of a series alias inside the scope."""
        return predicate.series_condition(se, self.shape)

    def study(self, st: FromClause) -> ColumnElement[bool]:
        """True for the rows of a study alias with a series inside the scope."""
        return predicate.study_condition(st, self.shape)

    def patient(self, pt: FromClause) -> ColumnElement[bool]:
        """True for the rows of a patient alias with a series inside the scope."""
        return predicate.patient_condition(pt, self.shape)

    def entire(self, st: FromClause) -> ColumnElement[bool]:
        """True only where every series of the study is inside the scope, whatever it is: stored counts may be shown.

        False promises nothing.
        """
        return predicate.entire_study_condition(st, self.shape)

    def run(
        self, tx: sa.Connection, statement: sa.Executable, params: Mapping[str, Any] | None = None, *, also: Scope | None = None
    ) -> CursorResult[Any]:
        """Execute a statement that holds conditions of this scope (and of `also`)."""
        values = {**(params or {}), **(also.parameters if also else {}), **self.parameters}
        return run_as(tx, self.token, statement, values)

    def all(self, tx: sa.Connection, prepared: Prepared, params: Mapping[str, Any]) -> list[Any]:
        """Return the rows of a prepared statement that holds conditions of a scope of this shape."""
        return prepared.all(tx, {**params, **self.parameters}, self.token)

    def each(self, tx: sa.Connection, prepared: Prepared, params: Mapping[str, Any]) -> Iterator[Any]:
        """Yield them one after the other, where they may be many."""
        return prepared.each(tx, {**params, **self.parameters}, self.token)

    def first(self, tx: sa.Connection, prepared: Prepared, params: Mapping[str, Any]) -> Any | None:
        """Return the first row of such a statement, or None."""
        return prepared.first(tx, {**params, **self.parameters}, self.token)

    def measured(self, tx: sa.Connection) -> Scope:
        """Return the scope with `whole` set when an unconditional archive-wide allow and no deny reach the caller."""
        if self.shape.boundaries or self.shape.besides is not None:
            return self
        return replace(self, whole=bool(_measured(self.shape).scalar(tx, self.parameters, self.token)))


def scope_of(subject: Subject, need: Permission, at: datetime, *, prefix: str = "scope") -> Scope:
    """Return the series `subject` may touch with every bit of `need` at `at`; no grant: the empty scope.

    Raises:
        ValueError: `need` is empty or holds a function permission.
    """
    bits = int(need)
    if subject.share_id is not None:
        bits |= _SHARE  # who may share no longer shares no longer
    if not int(need) or bits & _NOT_OBJECT:
        message = "a scope is asked for object permissions"
        raise ValueError(message)
    shape, values = _shape_of(subject, at, prefix)
    asked: Subject | None = subject
    while asked is not None:
        lacking, restricted = ~_limit_of(asked), bits | _RESTRICTED
        values[f"{prefix}_need"] = bits
        values[f"{prefix}_need_restricted"] = restricted
        values[f"{prefix}_within"] = not bits & lacking
        values[f"{prefix}_within_restricted"] = not restricted & lacking
        values[f"{prefix}_missing_context"] = _EVERY_BIT & ~asked.context
        asked, prefix = asked.narrowed_by, f"{prefix}{_BESIDES}"
    return Scope(guard.Token(f"scope:{subject.principal_id}:{bits}"), need, MappingProxyType(values), shape, _seal=_SEAL)


def require(tx: sa.Connection, subject: Subject, permission: Permission, at: datetime) -> None:
    """Check function permissions: every bit of `permission`, from role assignments of the subject and its groups that count now.

    The console holds every one. Object permissions are never asked here.

    Raises:
        Forbidden: a bit is lacking, or the subject's session, token or principal no longer counts.
        ValueError: `permission` is empty or holds an object permission.
    """
    bits = int(permission)
    if not bits or bits & ~_FUNCTION:
        message = "require is asked for function permissions"
        raise ValueError(message)
    if bits & ~int(functions_of(tx, subject, at)):
        _lacks(permission)


def require_any(tx: sa.Connection, subject: Subject, permissions: Permission, at: datetime) -> None:
    """Check that one bit of several function permissions is held.

    Raises:
        Forbidden.
    """
    if not functions_of(tx, subject, at) & permissions:
        _lacks(permissions)


def require_live(tx: sa.Connection, subject: Subject, at: datetime) -> None:
    """Check that the subject's principal, session and token still count, where no permission is asked for.

    Raises:
        Forbidden.
    """
    if subject.kind == "console":
        return
    shape, values = _shape_of(subject, at, "scope")
    if not _live(shape).scalar(tx, values):
        message = "the sign-in or token counts no longer"
        raise Forbidden(message, remedy="sign in again")


def reaches(tx: sa.Connection, subject: Subject, datastore_id: int | None, at: datetime) -> bool:
    """Whether an allow of the subject or its groups counts now anywhere in a datastore (None: in any).

    A datastore in which none does is not there for them.
    """
    shape, values = _shape_of(subject, at, "scope")
    if datastore_id is not None:
        values["datastore"] = datastore_id
    if subject.narrowed_by is not None and not reaches(tx, subject.narrowed_by, datastore_id, at):
        return False
    return bool(_reaches(shape, anywhere=datastore_id is None).scalar(tx, values))


def _lacks(permission: Permission) -> NoReturn:
    names = ", ".join(sorted(bit.name.lower().replace("_", "-") for bit in permission if bit.name))
    message = f"this needs the permission {names}"
    raise Forbidden(message, remedy="ask an administrator for a role that holds it ('archive role list')")


def functions_of(tx: sa.Connection, subject: Subject, at: datetime) -> Permission:
    """Return the function permissions that count for the subject at `at`."""
    if subject.kind == "console":
        return FUNCTION
    shape, values = _shape_of(subject, at, "scope")
    held = 0
    for row in _functions(shape).all(tx, values):
        held |= row[0]
    if subject.narrowed_by is not None:
        held &= int(functions_of(tx, subject.narrowed_by, at))
    return Permission(held & _FUNCTION & _limit_of(subject))


# --- the statements, built once for each shape ---


@lru_cache(maxsize=64)
def _functions(shape: Shape) -> Prepared:
    a, r = _ASSIGNMENT, _ROLE
    return Prepared(
        sa.select(r.c.permissions).select_from(a.join(r, r.c.id == a.c.role_id)).where(
            predicate.is_caller(a.c.principal_id, shape), predicate.not_revoked(a), predicate.in_window(a, shape),
            predicate.caller_is_live(shape),
        )
    )


@lru_cache(maxsize=64)
def _live(shape: Shape) -> Prepared:
    return Prepared(sa.select(predicate.caller_is_live(shape)))


@lru_cache(maxsize=64)
def _reaches(shape: Shape, *, anywhere: bool) -> Prepared:
    g = _GRANT
    allow = sa.select(1).select_from(g).where(
        predicate.is_caller(g.c.subject_id, shape), g.c.effect == predicate.ALLOW, predicate.not_revoked(g),
        predicate.in_window(g, shape), lineage.standing(g, shape),
    )
    if not anywhere:
        allow = allow.where(g.c.datastore_id == sa.bindparam("datastore"))
    return Prepared(sa.select(sa.exists(allow)))


@lru_cache(maxsize=64)
def _measured(shape: Shape) -> Prepared:
    g = _GRANT
    live = sa.and_(
        predicate.is_caller(g.c.subject_id, shape), predicate.not_revoked(g), predicate.in_window(g, shape),
    )
    wide = sa.exists(
        sa.select(1).select_from(g).where(
            live, g.c.effect == predicate.ALLOW, g.c.scope_key == 0, g.c.modality == "", g.c.department_id.is_(None),
            g.c.study_date_from == "", g.c.study_date_to == "", g.c.need_context == 0,
            g.c.permissions.bitwise_and(shape.need()) == shape.need(),
        )
    )
    deny = sa.exists(sa.select(1).select_from(g).where(live, g.c.effect == predicate.DENY))
    return Prepared(sa.select(sa.and_(wide, sa.not_(deny))))


_DATASTORE_ID = Prepared(sa.select(tables.datastore.c.id).where(tables.datastore.c.name == sa.bindparam("name")))


_shape = lru_cache(maxsize=256)(Shape)
"""One object for each shape: statements are looked up by it, and two that are one are told to be so at once."""


def _shape_of(subject: Subject, at: datetime, prefix: str) -> tuple[Shape, dict[str, Any]]:
    tokens = 0 if subject.token_id is None else subject.token_depth
    besides: Shape | None = None
    values: dict[str, Any] = {}
    if subject.narrowed_by is not None:
        besides, values = _shape_of(subject.narrowed_by, at, f"{prefix}{_BESIDES}")
    shape = _shape(subject.session_id is not None, tokens, len(subject.boundary_ids), prefix, subject.share_id is not None, besides)
    values |= {f"{prefix}_me": subject.principal_id, **shape.at(at)}
    named = ("session", subject.session_id), ("token", subject.token_id), ("share", subject.share_id)
    for name, value in (*named, ("share_session", subject.share_session_id)):
        if value is not None:
            values[f"{prefix}_{name}"] = value
    values |= {f"{prefix}_boundary_{number}": value for number, value in enumerate(subject.boundary_ids)}
    return shape, values


def _limit_of(subject: Subject) -> int:
    return _EVERY_BIT if subject.limit is None else int(subject.limit)


def datastore_id(tx: sa.Connection, name: str) -> int:
    """Return the key of the datastore of that name.

    Raises:
        NotFound.
    """
    found = _DATASTORE_ID.scalar(tx, {"name": name})
    if found is None:
        message = "there is no such datastore"
        raise NotFound(message, remedy="name one that exists; the default is clinical")
    return int(found)
