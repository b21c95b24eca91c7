"""/api/approvals: what takes two people, and waits for the second."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from archive.access.permissions import Permission
from archive.web.api.operation import Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class ApprovalsQuery(Taken):
    """Which: those that wait, or every one."""

    every: bool = False


class Refusal(Taken):
    """Why a request is refused."""

    note: str = ""


class ApprovalRequest(Told):
    """A request; one that is `at_console` is given again there once it is approved."""

    id: int
    state: Literal["waiting", "approved", "under way", "done", "failed", "refused", "expired"]
    operation: str
    said: str
    reason: str
    asked_by: str
    operator: str
    asked_at: datetime
    expires_at: datetime
    decided_by: str
    decided_at: datetime | None
    done_at: datetime | None
    at_console: bool


OPERATIONS = (
    Operation("GET", "/approvals", "approvals", "List the requests one asked or may decide, newest first", _P.NONE,
              lambda asked: node().approvals.listed(subject(), every=asked.query.every), list[ApprovalRequest], query=ApprovalsQuery,
              tag="approvals"),
    Operation("GET", "/approvals/<number>", "approval_show", "Show a request", _P.NONE,
              lambda _asked, number: node().approvals.show(subject(), number), ApprovalRequest, tag="approvals", refuses=(404,)),
    Operation("POST", "/approvals/<number>/approve", "approval_approve", "Agree to a request of somebody else; it is carried out, once",
              _P.NONE, lambda _asked, number: node().approvals.approve(subject(), number), ApprovalRequest, tag="approvals",
              refuses=(404, 409)),
    Operation("POST", "/approvals/<number>/refuse", "approval_refuse", "Refuse a request, or take one's own back", _P.NONE,
              lambda asked, number: node().approvals.refuse(subject(), number, note=asked.body.note), ApprovalRequest, Refusal,
              tag="approvals", refuses=(404, 409)),
)
