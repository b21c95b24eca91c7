"""Asking for access and deciding on it; break-glass and its review."""

from __future__ import annotations

from typing import Any, Literal

from flask import Blueprint, g, make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.access.permissions import Permission
from archive.errors import InvalidRequest, NotFound
from archive.services.break_glass import REASONS
from archive.web.context import node, subject
from archive.web.pages.account import sentence
from archive.web.permissions import SIGNED_IN, Rule

RULES = {
    "pages.access": SIGNED_IN,
    "pages.access_ask": SIGNED_IN,
    "pages.access_withdraw": SIGNED_IN,
    "pages.access_decision": SIGNED_IN,
    "pages.break_glass": Rule(Permission.BREAK_GLASS),
    "pages.break_glass_end": SIGNED_IN,
    "pages.break_glass_reviews": Rule(Permission.AUDIT),
    "pages.break_glass_review": Rule(Permission.AUDIT),
}
OWN = ("/access", "/break-glass")
ENDS = {"8h": "8 hours", "1d": "1 day", "7d": "7 days", "30d": "30 days"}
FIELD_CHARACTERS = 2000


def add(pages: Blueprint) -> None:
    """Add the routes of this file."""
    pages.add_url_rule("/access", "access", access)
    pages.add_url_rule("/access/ask", "access_ask", ask, methods=["GET", "POST"])
    pages.add_url_rule("/access/<int:number>/withdraw", "access_withdraw", withdraw, methods=["POST"])
    pages.add_url_rule("/access/<int:number>", "access_decision", decision, methods=["GET", "POST"])
    pages.add_url_rule("/break-glass", "break_glass", break_glass, methods=["GET", "POST"])
    pages.add_url_rule("/break-glass/<int:number>/end", "break_glass_end", end, methods=["POST"])
    pages.add_url_rule("/break-glass/reviews", "break_glass_reviews", reviews)
    pages.add_url_rule("/break-glass/<int:number>/review", "break_glass_review", review, methods=["POST"])


def back() -> dict[str, str]:
    """Where each of these goes on after its user was asked again."""
    return {"pages.access_decision": request.path, "pages.break_glass": "/break-glass"}


def emergencies() -> list[dict[str, Any]]:
    """Return what the user opened by break-glass and is open now: every page says so."""
    asker = g.get("subject")
    return node().break_glass.mine(asker, active=True) if asker is not None and asker.via == "web" else []


def access() -> Response:
    """List one's own requests, and those of others that wait for one's decision."""
    requests = node().access_requests
    return make_response(render_template(
        "access.html", mine=requests.mine(subject()), waiting=requests.waiting(subject()), user=subject().name,
    ))


def ask() -> Response:
    """Ask for a patient or study; whether it is there is not said."""
    asked = {name: _field(name) for name in ("level", "object", "issuer", "until", "reason")}
    if request.method == "GET":
        return make_response(_ask_page(asked, ""))
    try:
        node().access_requests.ask(
            subject(), level=_level(asked["level"]), value=asked["object"], issuer=asked["issuer"], until=asked["until"] or None,
            reason=asked["reason"],
        )
    except InvalidRequest as error:
        return make_response(_ask_page(asked, sentence(error)), 400)
    return redirect("/access", code=303)


def _ask_page(asked: dict[str, str], refusal: str) -> str:
    return render_template("access_ask.html", asked=asked, ends=ENDS, refusal=refusal, user=subject().name)


def withdraw(number: int) -> Response:
    """Take back a request of one's own."""
    node().access_requests.withdraw(subject(), number)
    return redirect("/access", code=303)


def decision(number: int) -> Response:
    """Show one request that waits for one's decision, and take the decision."""
    requests, refusal = node().access_requests, ""
    if request.method == "POST":
        try:
            requests.decide(
                subject(), number, approve=_field("decision") == "approve", until=_field("until") or None, note=_field("note")
            )
        except InvalidRequest as error:
            refusal = sentence(error)
        else:
            return redirect("/access", code=303)
    one = next((row for row in requests.waiting(subject()) if row["id"] == number), None)
    if one is None:
        message = "there is no such open request"
        raise NotFound(message)
    page = render_template("access_decision.html", one=one, ends=ENDS, refusal=refusal, user=subject().name)
    return make_response(page, 400 if refusal else 200)


def break_glass() -> Response:
    """Open a patient in an emergency; what is open now, and how it is ended."""
    asked = {name: _field(name) for name in ("level", "object", "issuer", "reason_code", "reason")}
    refusal = ""
    if request.method == "POST":
        try:
            node().break_glass.open(
                subject(), level=_level(asked["level"]), value=asked["object"], issuer=asked["issuer"], reason_code=asked["reason_code"],
                reason=asked["reason"],
            )
        except InvalidRequest as error:
            refusal = sentence(error)
        else:
            return redirect("/studies", code=303)
    page = render_template(
        "break_glass.html", asked=asked, reasons=REASONS, refusal=refusal, mine=node().break_glass.mine(subject()), user=subject().name,
        minutes=node().config.policy.break_glass_minutes,
    )
    return make_response(page, 400 if refusal else 200)


def end(number: int) -> Response:
    """Close early what one opened."""
    node().break_glass.end(subject(), number)
    return redirect("/studies", code=303)


def reviews() -> Response:
    """List what waits for its review."""
    return make_response(_reviews_page(""))


def _reviews_page(refusal: str) -> str:
    rows = node().break_glass.to_review(subject())
    return render_template("break_glass_reviews.html", rows=rows, reasons=REASONS, refusal=refusal, user=subject().name)


def review(number: int) -> Response:
    """Say whether it was justified."""
    try:
        node().break_glass.review(subject(), number, verdict=_field("verdict"), note=_field("note"))
    except InvalidRequest as error:
        return make_response(_reviews_page(sentence(error)), 400)
    return redirect("/break-glass/reviews", code=303)


def _field(name: str) -> str:
    return request.form.get(name, "")[:FIELD_CHARACTERS].strip()


def _level(text: str) -> Literal["patient", "study"]:
    return "study" if text == "study" else "patient"
