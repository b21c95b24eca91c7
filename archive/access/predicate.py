"""Which series a subject may touch, as one SQL condition: the rule of docs/access.md, clause by clause.

The condition is built once per table alias and shape and holds only named parameters, so its text never changes and the database
keeps its plan; `policy.Scope` supplies the values. A statement run without them fails: there is no default that lets anyone in.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy import ColumnElement, CompoundSelect, FromClause, Select

from archive.access.among import Among
from archive.access.permissions import Permission
from archive.access.shape import Shape
from archive.db import tables

ALLOW, DENY = 1, 0
MOST_TOKENS = 4
"""How many tokens may stand on each other: one made in a session, one made with that, and so on."""

# PostgreSQL would turn an EXISTS into a join and compare every series with every grant of the caller; so it looks into the indexes
# for each row it comes to: the series of a study, then four keys of grants.
_ROW_BY_ROW = "OFFSET 0"

# Constants stand in the text: a parameter each would cost more than it says.
_ZERO, _ONE, _TWO, _THREE, _FOUR = (sa.literal_column(str(n), sa.BigInteger()) for n in range(5))
_EMPTY = sa.literal_column("''", sa.Text())
# Aliases are made once: a fresh one copies every column. None is ever nested in itself.
_VISIBLE = tables.series.alias("visible_series")
_ALLOW_GRANT, _DENY_GRANT = tables.grants.alias("allow_grant"), tables.grants.alias("deny_grant")
_ANY_DENY = tables.grants.alias("some_deny")
_CALLER, _GROUP = tables.principal.alias("caller"), tables.principal.alias("caller_group")
_MEMBERSHIP = tables.membership.alias("caller_membership")
_SESSION, _SESSION_OWNER = tables.session.alias("caller_session"), tables.principal.alias("session_owner")
_TOKENS = [tables.api_token.alias(f"caller_token_{n}") for n in range(MOST_TOKENS)]
_BOUNDARY, _BOUNDARY_ITEM = tables.boundary.alias("caller_boundary"), tables.boundary_item.alias("caller_boundary_item")
_SHARE, _SHARE_SESSION = tables.share_link.alias("caller_share"), tables.share_session.alias("caller_share_session")
_OF_GIVER = tables.grants.alias("giver_grant")
_GIVER, _GIVER_GROUP = tables.principal.alias("giver"), tables.principal.alias("giver_group")
_GIVER_MEMBERSHIP = tables.membership.alias("giver_membership")
_BY_ALBUM = sa.literal_column("'shared'", sa.Text())
_MAY_SHARE = sa.literal_column(str(int(Permission.SHARE)), sa.BigInteger())
_SIGNS_IN = [sa.literal_column(f"'{kind}'", sa.Text()) for kind in ("user", "service", "device")]


def series_condition(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """True for the series of `se` that the subject may touch."""
    return _series_condition(se, shape)


def study_condition(st: FromClause, shape: Shape) -> ColumnElement[bool]:
    """True for the studies of `st` with a series the subject may touch."""
    return _parent_condition(st, "study_pk", shape)


def patient_condition(pt: FromClause, shape: Shape) -> ColumnElement[bool]:
    """True for the patients of `pt` with a series the subject may touch."""
    return _parent_condition(pt, "patient_pk", shape)


@lru_cache(maxsize=256)
def entire_study_condition(st: FromClause, shape: Shape) -> ColumnElement[bool]:
    """True only for studies of `st` that an unconditional allow covers whole, with nothing that could hide a part."""
    if shape.boundaries:
        return sa.false()
    g, d, se = _ALLOW_GRANT, _DENY_GRANT, _VISIBLE
    wide = sa.select(1).select_from(g).where(
        is_caller(g.c.subject_id, shape), g.c.effect == _ONE, in_datastore(g, st), not_revoked(g), in_window(g, shape),
        g.c.modality == _EMPTY, g.c.department_id.is_(None), g.c.study_date_from == _EMPTY, g.c.study_date_to == _EMPTY,
        g.c.kind != _BY_ALBUM, g.c.parent_id.is_(None), context_suffices(g, shape),
        g.c.permissions.bitwise_and(shape.need()) == shape.need(),
        g.c.scope_key.in_([_ZERO, st.c.patient_pk * _FOUR + _ONE, st.c.id * _FOUR + _TWO]),
    ).correlate(st)
    any_deny = sa.select(1).select_from(d).where(
        is_caller(d.c.subject_id, shape), d.c.effect == _ZERO, not_revoked(d), in_window(d, shape),
    )  # of any datastore, so that it is asked once and not for each study
    restricted = sa.select(1).select_from(se).where(se.c.study_pk == st.c.id, se.c.restricted == sa.true()).correlate(st)
    return sa.and_(
        sa.true() if shape.besides is None else entire_study_condition(st, shape.besides),
        caller_is_live(shape), shape.within() == sa.true(),
        sa.exists(wide), sa.not_(sa.exists(any_deny)), sa.not_(sa.exists(restricted)),
    )


@lru_cache(maxsize=256)
def _parent_condition(parent: FromClause, key: str, shape: Shape) -> ColumnElement[bool]:
    se = _VISIBLE
    visible = sa.select(1).select_from(se).where(se.c[key] == parent.c.id, _series_condition(se, shape)).correlate(parent)
    return sa.exists(visible.suffix_with(_ROW_BY_ROW, dialect="postgresql"))


@lru_cache(maxsize=256)
def _series_condition(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    return sa.and_(
        holds_images(se),
        caller_is_live(shape),
        within_limit(se, shape),
        allowed(se, shape),
        sa.not_(sa.and_(any_deny(shape), denied(se, shape))),
        within_boundaries(se, shape),
        allowed_besides(se, shape),
    )


# --- the clauses, each removable by name so that a test can show that it is missed ---


def allowed_besides(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """Who else must be allowed is, with the same bits."""
    return sa.true() if shape.besides is None else _series_condition(se, shape.besides)


def holds_images(se: FromClause) -> ColumnElement[bool]:
    """A series whose instances are all rejected is not there."""
    return se.c.n_instances > _ZERO


def caller_is_live(shape: Shape) -> ColumnElement[bool]:
    """The principal, and the session or token it came with, still count."""
    clauses = [principal_is_enabled(shape)]
    if shape.session:
        clauses.append(session_is_live(shape))
    if shape.tokens:
        clauses.append(token_is_live(shape))
    if shape.share:
        clauses.append(share_is_live(shape))
    if shape.besides is not None:
        clauses.append(caller_is_live(shape.besides))
    return sa.and_(*clauses)


def principal_is_enabled(shape: Shape) -> ColumnElement[bool]:
    """The console and groups own no scope: someone must have signed in, or a device."""
    p = _CALLER
    return sa.exists(
        sa.select(1).select_from(p).where(
            p.c.id == shape.me(),
            p.c.enabled == sa.true(),
            p.c.removed_at.is_(None),
            p.c.kind.in_(_SIGNS_IN),
        )
    )


def session_is_live(shape: Shape) -> ColumnElement[bool]:
    """Not ended, not idle too long, not too old, and of the principal's present security epoch."""
    s, p = _SESSION, _SESSION_OWNER
    return sa.exists(
        sa.select(1).select_from(s.join(p, p.c.id == s.c.principal_id)).where(
            s.c.id == shape.session_id(),
            s.c.principal_id == shape.me(),
            s.c.revoked_at.is_(None),
            s.c.idle_until > shape.now(),
            s.c.absolute_until > shape.now(),
            s.c.epoch == p.c.security_epoch,
        )
    )


def token_is_live(shape: Shape) -> ColumnElement[bool]:
    """The token and each it was made with: not revoked, not expired, and what binds it binds the subject."""
    chain = _TOKENS[:shape.tokens]
    first, last = chain[0], chain[-1]
    source: FromClause = first
    for made, by in pairwise(chain):
        source = source.join(by, by.c.id == made.c.parent_id)
    return sa.exists(
        sa.select(1).select_from(source).where(
            first.c.id == shape.token_id(),
            last.c.parent_id.is_(None),
            *(token_counts(t, shape) for t in chain),
        )
    )


def token_counts(t: FromClause, shape: Shape) -> ColumnElement[bool]:
    """One of the tokens the caller stands on."""
    bounds = [shape.boundary_id(number) for number in range(shape.boundaries)]
    return sa.and_(
        t.c.principal_id == shape.me(),
        t.c.revoked_at.is_(None),
        t.c.not_after > shape.now(),
        sa.or_(t.c.boundary_id.is_(None), t.c.boundary_id.in_(bounds)) if bounds else t.c.boundary_id.is_(None),
    )


def share_is_live(shape: Shape) -> ColumnElement[bool]:
    """The link is the principal's own, neither revoked nor at its end, binds the subject, and its session goes on."""
    link, opened = _SHARE, _SHARE_SESSION
    bound = link.c.boundary_id == shape.boundary_id(0) if shape.boundaries else sa.false()
    return sa.exists(
        sa.select(1).select_from(link.join(opened, opened.c.share_id == link.c.id)).where(
            link.c.id == shape.share_id(),
            opened.c.id == shape.share_session_id(),
            link.c.owner_id == shape.me(),
            link.c.revoked_at.is_(None),
            link.c.not_after > shape.now(),
            opened.c.revoked_at.is_(None),
            opened.c.idle_until > shape.now(),
            opened.c.absolute_until > shape.now(),
            link.c.token_id == shape.token_id() if shape.tokens else link.c.token_id.is_(None),
            bound,
        )
    )


def needed(se: FromClause, shape: Shape) -> ColumnElement[int]:
    """The bits wanted of this series: a restricted one asks for RESTRICTED besides."""
    return sa.case((se.c.restricted == sa.true(), shape.need_restricted()), else_=shape.need())


def within_limit(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """The caller's own bound holds every bit wanted."""
    return sa.case((se.c.restricted == sa.true(), shape.within_restricted()), else_=shape.within()) == sa.true()


def allowed(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """One live allow covers the series and holds every bit wanted, and so does all it was passed on from."""
    from archive.access import lineage  # which stands on the clauses of this file

    g = _ALLOW_GRANT
    need = needed(se, shape)
    return sa.exists(
        _grants_on(g, se, shape, ALLOW).where(
            g.c.permissions.bitwise_and(need) == need,
            context_suffices(g, shape),
            sa.or_(g.c.kind != _BY_ALBUM, giver_may_share(g, se, shape)),
            lineage.unbroken(g, se, need, shape),
        )
    )


def giver_may_share(g: FromClause, se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """Whoever gave it may do all it gives, and share, on a grant that came by no album and was not passed on; nothing denies it to them."""
    x, p = _OF_GIVER, _GIVER
    wanted = g.c.permissions.bitwise_or(_MAY_SHARE)
    enabled = sa.select(1).select_from(p).where(
        p.c.id == g.c.granted_by, p.c.enabled == sa.true(), p.c.removed_at.is_(None), p.c.kind.in_(_SIGNS_IN)
    ).correlate(g)
    # One look at their grants: the least effect is 1 where one of them allows and none denies.
    least = sa.select(sa.func.min(x.c.effect)).where(
        is_giver(x.c.subject_id, g, shape),
        in_datastore(x, se),
        not_revoked(x),
        in_window(x, shape),
        modality_fits(x, se),
        department_fits(x, se),
        date_fits(x, se),
        scope_covers(x, se),
        sa.or_(
            sa.and_(x.c.effect == _ZERO, x.c.permissions.bitwise_and(wanted) != _ZERO),
            sa.and_(x.c.effect == _ONE, x.c.kind != _BY_ALBUM, x.c.parent_id.is_(None), x.c.need_context == _ZERO,
                    x.c.permissions.bitwise_and(wanted) == wanted),
        ),
    ).correlate(g, se).scalar_subquery()
    return sa.and_(sa.exists(enabled), least == _ONE)


def is_giver(principal_id: ColumnElement[int], g: FromClause, shape: Shape) -> ColumnElement[bool]:
    """Who gave the grant, or a group they are a member of now."""
    m, p = _GIVER_MEMBERSHIP, _GIVER_GROUP
    groups = sa.select(1).select_from(m.join(p, p.c.id == m.c.group_id)).where(
        m.c.group_id == principal_id, m.c.principal_id == g.c.granted_by, membership_is_live(m, shape), group_is_enabled(p),
    ).correlate(g, principal_id.table)
    return sa.or_(principal_id == g.c.granted_by, sa.exists(groups))


def denied(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """Any live deny covers the series and holds one of the bits wanted."""
    g = _DENY_GRANT
    return sa.exists(_grants_on(g, se, shape, DENY).where(g.c.permissions.bitwise_and(needed(se, shape)) != _ZERO))


def any_deny(shape: Shape) -> ColumnElement[bool]:
    """Whether there is a deny for the caller at all: asked once a statement, it spares most callers asking for each series."""
    d = _ANY_DENY
    return sa.exists(sa.select(1).select_from(d).where(is_caller(d.c.subject_id, shape), d.c.effect == _ZERO))


def within_boundaries(se: FromClause, shape: Shape) -> ColumnElement[bool]:
    """A bounded caller reaches only what every one of its boundaries names."""
    if not shape.boundaries:
        return sa.true()
    return sa.and_(*(within_boundary(se, shape, number) for number in range(shape.boundaries)))


def within_boundary(se: FromClause, shape: Shape, number: int) -> ColumnElement[bool]:
    """What one of them names."""
    b, i = _BOUNDARY, _BOUNDARY_ITEM
    need = needed(se, shape)
    return sa.exists(
        sa.select(1).select_from(i.join(b, b.c.id == i.c.boundary_id)).where(
            i.c.boundary_id == shape.boundary_id(number),
            b.c.owner_id == shape.me(),
            b.c.not_after > shape.now(),
            i.c.permissions.bitwise_and(need) == need,
            bound_covers(i, se),
        ).correlate(se)
    )


def bound_covers(i: FromClause, se: FromClause) -> ColumnElement[bool]:
    """The archive, a datastore, or this series' patient, study or itself."""
    return i.c.scope_key.in_([
        _ZERO, se.c.datastore_id * _FOUR, se.c.patient_pk * _FOUR + _ONE, se.c.study_pk * _FOUR + _TWO, se.c.id * _FOUR + _THREE,
    ])


def _grants_on(g: FromClause, se: FromClause, shape: Shape, effect: int) -> Select[tuple[int]]:
    return sa.select(1).select_from(g).where(
        is_caller(g.c.subject_id, shape),
        g.c.effect == (_ONE if effect == ALLOW else _ZERO),
        in_datastore(g, se),
        not_revoked(g),
        in_window(g, shape),
        modality_fits(g, se),
        department_fits(g, se),
        date_fits(g, se),
        scope_covers(g, se),
    ).correlate(se).suffix_with(_ROW_BY_ROW, dialect="postgresql")


def is_caller(principal_id: ColumnElement[int], shape: Shape) -> ColumnElement[bool]:
    """The principal itself, or a group it is a member of now."""
    return Among(principal_id, callers(shape).scalar_subquery())


def callers(shape: Shape) -> CompoundSelect[tuple[int]]:
    """Select the principal itself and the groups it is a member of now."""
    m, p = _MEMBERSHIP, _GROUP
    groups = sa.select(m.c.group_id).select_from(m.join(p, p.c.id == m.c.group_id)).where(
        m.c.principal_id == shape.me(), membership_is_live(m, shape), group_is_enabled(p)
    )
    return sa.union_all(sa.select(shape.me().label("id")), groups)


def membership_is_live(m: FromClause, shape: Shape) -> ColumnElement[bool]:
    """A membership counts from its start until its end."""
    return sa.and_(m.c.not_before <= shape.now(), m.c.not_after > shape.now())


def group_is_enabled(p: FromClause) -> ColumnElement[bool]:
    """A group switched off or removed gives and denies nothing."""
    return sa.and_(p.c.enabled == sa.true(), p.c.removed_at.is_(None))


def in_datastore(g: FromClause, se: FromClause) -> ColumnElement[bool]:
    """A grant reaches its own datastore only."""
    return g.c.datastore_id == se.c.datastore_id


def not_revoked(g: FromClause) -> ColumnElement[bool]:
    """A revoked grant never counts again."""
    return g.c.revoked_at.is_(None)


def in_window(g: FromClause, shape: Shape) -> ColumnElement[bool]:
    """A grant counts from its start until its end."""
    return sa.and_(g.c.not_before <= shape.now(), g.c.not_after > shape.now())


def context_suffices(g: FromClause, shape: Shape) -> ColumnElement[bool]:
    """An allow may ask for a context; a deny holds in every one."""
    return g.c.need_context.bitwise_and(shape.missing_context()) == _ZERO


def modality_fits(g: FromClause, se: FromClause) -> ColumnElement[bool]:
    """Empty means any modality."""
    return sa.or_(g.c.modality == _EMPTY, g.c.modality == se.c.modality)


def department_fits(g: FromClause, se: FromClause) -> ColumnElement[bool]:
    """NULL means any department."""
    return sa.or_(g.c.department_id.is_(None), g.c.department_id == se.c.department_id)


def date_fits(g: FromClause, se: FromClause) -> ColumnElement[bool]:
    """Both ends inclusive; a series without a study date fits no grant that names one."""
    return sa.and_(
        sa.or_(g.c.study_date_from == _EMPTY, se.c.study_date >= g.c.study_date_from),
        sa.or_(g.c.study_date_to == _EMPTY, sa.and_(se.c.study_date != _EMPTY, se.c.study_date <= g.c.study_date_to)),
    )


def scope_covers(g: FromClause, se: FromClause) -> ColumnElement[bool]:
    """The archive, or this series' patient, study or itself: typed integer keys, never text from the wire."""
    return g.c.scope_key.in_(
        [_ZERO, se.c.patient_pk * _FOUR + _ONE, se.c.study_pk * _FOUR + _TWO, se.c.id * _FOUR + _THREE]
    )
