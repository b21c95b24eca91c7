"""/api/policy: who may do what as one text, tried and applied."""

from __future__ import annotations

from typing import Any, Literal

from archive.access.permissions import Permission
from archive.web.api.operation import Asked, Operation, Taken, Text, Told
from archive.web.context import node, subject

_P = Permission


class PolicyTrial(Taken):
    """A policy as text (TOML)."""

    text: str


class PolicyToApply(Taken):
    """A policy as text (TOML); `difference` is that of a trial, and must still be the same."""

    text: str
    reason: str = ""
    difference: str | None = None


class PolicyEffect(Told):
    """What somebody gains or loses: functions (series 0), or object permissions on so many series."""

    subject: str
    change: Literal["gains", "loses"]
    permissions: list[str]
    series: int


class PolicyUnmet(Told):
    """An expectation that does not hold, by its number in the text."""

    number: int
    subject: str
    permissions: list[str]
    level: str
    object: str
    expected: Literal["allow", "deny"]
    found: Literal["allow", "deny", "absent"]


class PolicyFound(Told):
    """What a policy changes, who gains and loses what, and what is not as expected."""

    changes: list[str]
    difference: str
    applied: bool
    effects: list[PolicyEffect]
    expectations: int
    failed: list[PolicyUnmet]


def _export(_asked: Asked) -> Any:
    return {"text": node().policy.export(subject())}


def _apply(asked: Asked) -> Any:
    given: PolicyToApply = asked.body
    return node().policy.apply(subject(), given.text, reason=given.reason, difference=given.difference)


OPERATIONS = (
    Operation("GET", "/policy", "policy", "Return roles, groups, assignments and grants as text", _P.ROLE_MANAGE | _P.AUDIT, _export, Text,
              media_type="application/toml", tag="policy"),
    Operation("POST", "/policy/test", "policy_test", "Say what a policy would change, and what of it is not as expected", _P.ROLE_MANAGE,
              lambda asked: node().policy.test(subject(), asked.body.text), PolicyFound, PolicyTrial, tag="policy", refuses=(404, 409)),
    Operation("POST", "/policy", "policy_apply", "Make the archive as a policy says, all of it or nothing", _P.ROLE_MANAGE, _apply,
              PolicyFound, PolicyToApply, tag="policy", refuses=(202, 404, 409)),
)
