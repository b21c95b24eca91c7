"""The operations two people decide about, by name: how each is carried out with what was asked for, and who may decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from archive.access.subject import Subject
from archive.errors import Forbidden
from archive.services.accounts import Accounts
from archive.services.policy_text import PolicyText
from archive.services.purge import Purge
from archive.services.shred import Shred

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """`run` carries it out; None: it is given again where it was asked, at the console. `entitled` raises for who may not do the same."""

    run: Callable[[Subject, Row], Any] | None
    entitled: Callable[[Subject, Row, Subject], None] | None = None


def registry(accounts: Accounts, policy: PolicyText, purge: Purge, shred: Shred) -> Mapping[str, Operation]:
    """Return every operation; a request of any other name is carried out by nobody."""

    def same_purge(second: Subject, asked: Row, asker: Subject) -> None:
        # Everything that would go must be theirs to purge too: what they may not see is not there for them.
        what = {name: value for name, value in _purge(asked).items() if name != "reason"}
        if not purge.would_go(asker, **what) <= purge.would_go(second, **what):
            message = "not all of it is yours to purge"
            raise Forbidden(message, remedy="ask somebody who may purge everything that was asked for")

    return {
        "role-add": Operation(lambda who, a: accounts.add_role(who, a["name"], a["permissions"])),
        "role-change": Operation(
            lambda who, a: accounts.change_role_as_asked(who, a["role"], a["before"], a["after"], reason=a["reason"])
        ),
        "role-assign": Operation(lambda who, a: accounts.assign_role(who, a["to"], a["role"], since=a["since"], until=a["until"])),
        "group-join": Operation(lambda who, a: accounts.join_group(who, a["group"], a["member"], since=a["since"], until=a["until"])),
        "group-leave": Operation(lambda who, a: accounts.leave_group(who, a["group"], a["member"])),
        "group-remove": Operation(lambda who, a: accounts.remove_group(who, a["group"])),
        "deny-revoke": Operation(lambda who, a: accounts.revoke_grant(who, a["grant"], reason=a["reason"])),
        "policy-apply": Operation(lambda who, a: policy.apply(who, a["text"], reason=a["reason"], difference=a["difference"])),
        "purge": Operation(lambda who, a: purge.run(who, **_purge(a)), same_purge),
        "key-rotate": Operation(None), "slot-add": Operation(None), "slot-remove": Operation(None),
        "shred": Operation(
            lambda who, a: shred.run(who, a["study"], reason=a["reason"], datastore=a["datastore"]),
            lambda second, a, _asker: shred.require(second, a["study"], a["datastore"]),
        ),
    }


def _purge(asked: Row) -> Row:
    # Of a study too: what is rejected after it was asked for nobody has agreed to.
    return {
        "datastore": asked["datastore"] or None, "study": asked["study"] or None, "reason": asked["reason"],
        "before": datetime.fromisoformat(asked["before"]) if asked["before"] else asked["asked_at"],
    }

