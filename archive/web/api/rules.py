"""/api/rules: grants that come by themselves as studies arrive."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from archive.access.permissions import Permission
from archive.services.arrival_admin import NewRule
from archive.services.arrival_terms import Conditions, lifetime
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Instant = Annotated[datetime, Meta(tz=True)]


class ArrivalRule(Told):
    """A rule, and how many of its grants count; `conditions` holds patterns by what they are about."""

    id: int
    name: str
    to: str
    role: str
    conditions: dict[str, list[str]]
    level: str
    days: float
    renew: bool
    priority: int
    datastore: str
    enabled: bool
    grants: int
    created_at: datetime


class NewArrivalRule(Taken):
    """A rule to add: of several patterns one must fit, of different conditions all; `lasts` is 8h, 90d or 12w, never endless."""

    name: str
    to: str
    role: str
    referring: tuple[str, ...] = ()
    performing: tuple[str, ...] = ()
    department: tuple[str, ...] = ()
    station: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    calling_ae: tuple[str, ...] = ()
    level: Literal["patient", "study", "series"] = "study"
    lasts: str = "90d"
    renew: bool = False
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    datastore: str = "clinical"


class RemoveRule(Taken):
    """With `keep_grants`, what it gave goes on to its end."""

    keep_grants: bool = False


class RuleRemoved(Told):
    """A rule that is gone, and what became of its grants."""

    id: int
    name: str
    revoked: int
    kept: int


class RuleTest(Taken):
    """Which stored study."""

    study: str
    datastore: str = "clinical"


class RuleMatch(Told):
    """A rule that is about a series, what its grant covers, and whether one is due."""

    rule: str
    to: str
    role: str
    level: str
    object: str
    due: bool


class ApplyRules(Taken):
    """Since when, by which rule (default all); without `confirm` it is only told what would be given."""

    since: Instant
    rule: str | None = None
    datastore: str = "clinical"
    confirm: bool = False


class Applied(Told):
    """How many grants, and the first thousand of them."""

    done: bool
    grants: int
    shown: list[RuleMatch]


def _add(asked: Asked) -> Any:
    given: NewArrivalRule = asked.body
    conditions = Conditions(
        referring=given.referring, performing=given.performing, department=given.department, station=given.station,
        modality=given.modality, calling_ae=given.calling_ae,
    )
    return node().arrival_rules.add(subject(), NewRule(
        given.name, given.to, given.role, conditions, level=given.level, lifetime_s=lifetime(given.lasts), renew=given.renew,
        priority=given.priority, datastore=given.datastore,
    ))


def _apply(asked: Asked) -> Any:
    given: ApplyRules = asked.body
    return node().arrival_rules.apply(
        subject(), since=given.since, rule=given.rule, datastore_name=given.datastore, confirm=given.confirm
    )


OPERATIONS = (
    Operation("GET", "/rules", "rules", "List rules on arrival in the order they are asked", _P.ROLE_MANAGE,
              lambda _asked: node().arrival_rules.list(subject()), list[ArrivalRule], tag="rules"),
    Operation("POST", "/rules", "rule_add", "Add a rule that gives grants, with an end, as studies arrive", _P.ROLE_MANAGE, _add,
              ArrivalRule, NewArrivalRule, status=201, tag="rules", refuses=(404,)),
    Operation("GET", "/rules/test", "rule_test", "Tell which rules are about a stored study", _P.ROLE_MANAGE,
              lambda asked: node().arrival_rules.test(subject(), asked.query.study, datastore_name=asked.query.datastore),
              list[RuleMatch], query=RuleTest, tag="rules", refuses=(404,)),
    Operation("POST", "/rules/apply", "rule_apply", "Give what rules say of what is there, or with no confirm tell it", _P.ROLE_MANAGE,
              _apply, Applied, ApplyRules, tag="rules", refuses=(404,)),
    Operation("POST", "/rules/<rule>/enable", "rule_enable", "Let a rule count again", _P.ROLE_MANAGE,
              lambda _asked, rule: node().arrival_rules.switch(subject(), rule, enabled=True), ArrivalRule, tag="rules", refuses=(404,)),
    Operation("POST", "/rules/<rule>/disable", "rule_disable", "Let a rule give nothing more", _P.ROLE_MANAGE,
              lambda _asked, rule: node().arrival_rules.switch(subject(), rule, enabled=False), ArrivalRule, tag="rules", refuses=(404,)),
    Operation("DELETE", "/rules/<rule>", "rule_remove", "Take a rule away, and what it gave", _P.ROLE_MANAGE,
              lambda asked, rule: node().arrival_rules.remove(subject(), rule, keep_grants=asked.query.keep_grants), RuleRemoved,
              query=RemoveRule, tag="rules", refuses=(404,)),
)
