"""An archive in which every table of worklist, procedure steps, commitment, forwarding, subscriptions, webhooks and holds has rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.subject import Subject
from archive.db import tables
from archive.dicom import scheduled
from archive.dicom import workitem as rules
from archive.node import Node
from archive.services.association_log import AssociationRecord
from archive.services.commitments import Reference
from archive.services.forward_rules import Conditions
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import entry
from tests.services import archives
from tests.web.dicomweb.test_ups import LOCK, el, item

CLINICAL = ("worklist_entry", "worklist_station", "mpps", "mpps_step", "workitem", "workitem_study", "commitment", "commitment_item")
"""What somebody was told is kept."""
ORDERS = ("forward_rule", "delivery_destination", "webhook", "ups_subscriber", "ups_subscription", "hold", "peer")
QUEUE = ("delivery",)
NOTES = ("ups_event", "association_record")
EVERY = CLINICAL + ORDERS + QUEUE + NOTES


def device(node: Node) -> Subject:
    """The modality, as it associates."""
    found = node.peers.admit(calling_ae_title="CT1", called_ae_title="STRONGROOM", address="127.0.0.1", certificate=None, tls=False)
    assert isinstance(found.subject, Subject)
    return found.subject


def filled(node: Node) -> None:
    """Do everything once: of each some over, some under way, some waiting."""
    console = archives.the_console(node)
    accounts = node.accounts
    accounts.add_role(console, "router", ["search", "send"])
    accounts.add_user(console, "router", password=archives.PASSWORD, roles=["technologist"])
    accounts.add_grant(console, to="router", role="router", target=Target("everything"))
    node.peers.add(console, "CT1", ["CT1"], networks=["127.0.0.1/32"], address="127.0.0.1:1", roles=["modality"])
    node.peers.set(console, "CT1", {"modality_without_tls": True, "character_set": "ISO_IR 100"})
    modality = device(node)
    for number in (1, 2, 3):
        archives.store(node, archives.instance(number), subject=modality)
    for number in range(1, 5):
        node.worklist.add(console, entry(number))
    node.worklist.cancel(console, 2)
    for number in (1, 3):
        node.steps.create(modality, "clinical", f"1.2.9.{number}", scheduled.checked(begun(number).to_json_dict()))
    node.steps.set(modality, "clinical", "1.2.9.1", scheduled.checked(ended().to_json_dict()))
    router = archives.user(node, "router")
    node.workitem_watch.subscribe(router, "clinical", rules.GLOBAL, "WATCH", deletion_lock=True)
    made = [node.workitems.create(router, "clinical", None, item(patient="P1", study="1.2.3")).uid for _ in range(2)]
    node.workitems.change_state(router, "clinical", made[0], {"00081195": el("UI", LOCK), "00741000": el("CS", "IN PROGRESS")})
    node.workitems.request_cancel(router, "clinical", made[1], {})
    node.workitem_watch.subscribe(router, "clinical", made[0], "ONE", deletion_lock=False)
    for number, uids in enumerate((("1.2.3.1.1", "1.2.3.1.9"), ("1.2.3.1.2",), ("1.2.3.1.3",)), 1):
        references = [Reference(archives.CT, uid) for uid in uids]
        node.commitments.request(modality, "clinical", f"1.2.8.{number}", references, calling_ae_title="CT1")
    for key in (1, 2):
        assert node.commitments.check(key) is not None
    node.commitments.reported(1)
    node.peers.add(console, "DST", ["DST"], networks=["192.0.2.0/24"], address="192.0.2.7:104")
    accounts.add_grant(console, to="DST", role="workstation", target=Target("everything"))
    node.forwarding.add(console, "all", "DST", on_behalf_of="router", conditions=Conditions(modality=("CT",)), existing=True)
    assert node.forwarding.look() == 3
    node.deliveries.done(node.forwarding.queue(console, destination="DST")[0]["id"])
    node.webhooks.add(console, url="https://192.0.2.9/hook", owner="router")
    node.holds.add(console, "clinical", "1.2.3", reason="a trial")
    at = datetime(2026, 2, 3, tzinfo=UTC)
    node.association_log.note(AssociationRecord(at, at, "refused", "peer not recognised", True, "X", "Y", "192.0.2.1"))
    node.association_log.flush()


def rows(node: Node, *names: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of these tables, in the order of their keys."""
    with node.core.database.read() as tx:
        return {name: [dict(row) for row in tx.execute(_ordered(tables.metadata.tables[name])).mappings()] for name in names}


def _ordered(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).order_by(*table.primary_key.columns)
