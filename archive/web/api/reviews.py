"""/api/reviews: who still needs what they have?"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from archive.access.permissions import Permission
from archive.services.review_rows import Chosen
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]
Instant = Annotated[datetime, Meta(tz=True)]


class Review(Told):
    """A review, and how many of its rows are decided; `leaf` numbers the event that is its signed record."""

    id: int
    title: str
    chosen: Row
    started_by: str
    started_at: datetime
    due_at: datetime
    state: Literal["open", "overdue", "closed"]
    undecided: int
    to_keep: int
    to_revoke: int
    closed_at: datetime | None
    closed_by: str
    leaf: int | None


class ReviewShown(Review):
    """A review with its rows; of a closed one those of the record."""

    items: list[Row]


class ReviewClosed(Review):
    """A closed review, and what became of its rows."""

    revoked: int
    kept: int


class NewReview(Taken):
    """Which grants and role assignments to go through until when; each condition narrows."""

    title: str
    due: Instant
    endless: bool = False
    group: str = ""
    role: str = ""
    older_days: Annotated[int, Meta(ge=0, le=36500)] = 0
    grants: bool = True
    roles: bool = True


class Decided(Taken):
    """Which rows, by the ids the review shows, and what is to become of them."""

    items: Annotated[list[Annotated[int, Meta(ge=1, le=10**15)]], Meta(min_length=1, max_length=2000)]
    decision: Literal["keep", "revoke"]
    note: str = ""


class Closing(Taken):
    """What becomes of rows nobody decided; without it closing waits for them."""

    undecided: Literal["keep", "revoke"] | None = None


def _start(asked: Asked) -> Any:
    given: NewReview = asked.body
    chosen = Chosen(given.endless, given.group, given.role, given.older_days, grants=given.grants, roles=given.roles)
    return node().reviews.start(subject(), given.title, due=given.due, chosen=chosen)


OPERATIONS = (
    Operation("GET", "/reviews", "reviews", "List access reviews, newest first", _P.ROLE_MANAGE,
              lambda _asked: node().reviews.list(subject()), list[Review], tag="reviews"),
    Operation("POST", "/reviews", "review_start", "Take down what stands now, to be decided", _P.ROLE_MANAGE, _start, Review, NewReview,
              status=201, tag="reviews", refuses=(404,)),
    Operation("GET", "/reviews/<number>", "review", "Show a review's rows; of a closed one its signed record", _P.ROLE_MANAGE,
              lambda _asked, number: node().reviews.show(subject(), number), ReviewShown, tag="reviews", refuses=(404,)),
    Operation("POST", "/reviews/<number>/decisions", "review_decide", "Keep or revoke rows; not one's own", _P.ROLE_MANAGE,
              lambda asked, number: node().reviews.decide(
                  subject(), number, asked.body.items, asked.body.decision, note=asked.body.note), Review, Decided, tag="reviews",
              refuses=(404, 409)),
    Operation("POST", "/reviews/<number>/close", "review_close", "End what is to be revoked, and sign the record", _P.ROLE_MANAGE,
              lambda asked, number: node().reviews.close(subject(), number, undecided=asked.body.undecided), ReviewClosed, Closing,
              tag="reviews", refuses=(404, 409)),
)
