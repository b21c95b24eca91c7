"""/api/webhooks: where the change feed is sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archive.access.permissions import Permission
from archive.services import datastores
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission


class Webhook(Told):
    """Where changes are sent, how far it is and what went wrong last; never its secret."""

    id: int
    url: str
    owner: str
    datastore: str
    state: str
    attempts: int
    problem: str
    behind: int
    created_at: datetime
    due_at: datetime | None
    delivered_at: datetime | None


class NewWebhook(Taken):
    """A webhook that tells what `owner`, who asks for it, sees: from now on or with `everything` from the beginning."""

    url: str
    owner: str
    datastore: str = datastores.DEFAULT
    everything: bool = False


class WebhookMade(Told):
    """A webhook with its secret, told this once."""

    id: int
    url: str
    owner: str
    datastore: str
    secret: str


class Tried(Told):
    """What a receiver answered."""

    id: int
    status: int


def _add(asked: Asked) -> Any:
    given: NewWebhook = asked.body
    return node().webhooks.add(subject(), url=given.url, owner=given.owner, datastore=given.datastore, everything=given.everything)


OPERATIONS = (
    Operation("GET", "/webhooks", "webhooks", "List webhooks", _P.CONFIGURE, lambda _asked: node().webhooks.list(subject()), list[Webhook],
              tag="changes"),
    Operation("POST", "/webhooks", "webhook_add", "Add a webhook", _P.CONFIGURE, _add, WebhookMade, NewWebhook, status=201, tag="changes",
              refuses=(404,)),
    Operation("DELETE", "/webhooks/<number>", "webhook_remove", "End a webhook", _P.CONFIGURE,
              lambda _asked, number: node().webhooks.remove(subject(), number), tag="changes", refuses=(404,)),
    Operation("POST", "/webhooks/<number>/test", "webhook_test", "Send a body without changes, and answer what came back", _P.CONFIGURE,
              lambda _asked, number: node().webhooks.test(subject(), number), Tried, tag="changes", refuses=(404, 502)),
)
