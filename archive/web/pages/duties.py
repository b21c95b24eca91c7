"""Who may do what: the matrix of roles; and what waits for a second person to approve it."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, make_response, render_template, request
from werkzeug.wrappers import Response

from archive.access.permissions import Permission
from archive.errors import ArchiveError, Forbidden, StateConflict
from archive.web.context import node, subject
from archive.web.pages.account import FIELD_BYTES, sentence
from archive.web.permissions import SIGNED_IN, Rule

RULES = {
    "pages.roles": Rule(Permission.USER_MANAGE), "pages.approvals": SIGNED_IN, "pages.approval_approve": SIGNED_IN,
    "pages.approval_refuse": SIGNED_IN,
}
BACK = {"pages.approval_approve": "/approvals", "pages.approval_refuse": "/approvals"}
"""Where a page goes on to after it asked again who it is."""

_OUTCOMES = {
    "done": "It is approved and done.", "failed": "It is approved, and failed: the audit log says why.",
    "approved": "It is approved. Whoever asked gives the command again.", "refused": "It is refused.",
}


def attach(pages: Blueprint) -> None:
    """Add the pages of this file."""
    pages.add_url_rule("/admin/roles", "roles", roles)
    pages.add_url_rule("/approvals", "approvals", approvals)
    pages.add_url_rule("/approvals/<int:number>/approve", "approval_approve", approve, methods=["POST"])
    pages.add_url_rule("/approvals/<int:number>/refuse", "approval_refuse", refuse, methods=["POST"])


def roles() -> Response:
    """Show every permission and the roles that hold it."""
    rows, known = node().accounts.matrix(subject()), node().accounts.list_roles(subject())
    return make_response(render_template("roles.html", user=subject().name, rows=rows, roles=known))


def approvals() -> Response:
    """List what waits, and what became of the rest."""
    return _page()


def approve(number: int) -> Response:
    """Agree to a request."""
    return _decided(lambda: node().approvals.approve(subject(), number)["state"])


def refuse(number: int) -> Response:
    """Refuse a request, or take one's own back."""
    note = request.form.get("note", "")[:FIELD_BYTES]
    return _decided(lambda: node().approvals.refuse(subject(), number, note=note)["state"])


def _decided(decide: Callable[[], str]) -> Response:
    try:
        state = decide()
    except (Forbidden, StateConflict) as error:
        return _page(refusal=error)
    return _page(done=_OUTCOMES.get(state, f"It is {state}."))


def _page(*, done: str = "", refusal: ArchiveError | None = None) -> Response:
    page = render_template(
        "approvals.html", user=subject().name, rows=node().approvals.listed(subject(), every=True), in_force=node().approvals.in_force,
        done=done, refusal="" if refusal is None else sentence(refusal),
    )
    return make_response(page, 200 if refusal is None else 403 if isinstance(refusal, Forbidden) else 409)
