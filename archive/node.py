"""The opened archive: every room built once, by hand, in the order they stand on each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

from archive.config import Config
from archive.errors import ArchiveError
from archive.keys.hygiene import harden_process
from archive.keys.keyring import Keyring
from archive.ledger.log import Ledger
from archive.services import key_changes, lifecycle, operations, setup
from archive.services.access_requests import AccessRequests
from archive.services.accounts import Accounts
from archive.services.albums import Albums
from archive.services.alerts import Alerts
from archive.services.approvals import Approvals
from archive.services.arrival_admin import ArrivalRules
from archive.services.association_log import AssociationLog
from archive.services.audit_export import AuditExport
from archive.services.audit_feed import AuditFeed
from archive.services.break_glass import BreakGlass
from archive.services.catchup import CatchUp
from archive.services.changefeed import ChangeFeed
from archive.services.clock import Clock, utc_now
from archive.services.commitments import Commitments
from archive.services.core import Core
from archive.services.delegation import Delegation
from archive.services.deliveries import Deliveries
from archive.services.disclosure import Disclosure
from archive.services.download import Download
from archive.services.factors import Factors
from archive.services.forwarding import Forwarding
from archive.services.health import Health
from archive.services.holds import Holds
from archive.services.idempotency import Idempotency
from archive.services.identities import Identities
from archive.services.imports import Imports
from archive.services.key_drill import KeyDrill
from archive.services.keyring import KeyringAdmin
from archive.services.ledger_replay import LedgerReplay
from archive.services.mpps import ProcedureSteps
from archive.services.oidc import Oidc
from archive.services.oversight import Oversight
from archive.services.peers import Peers
from archive.services.pictures import Pictures
from archive.services.policy_text import PolicyText
from archive.services.printed import Printed
from archive.services.purge import Purge
from archive.services.purge_finish import finish
from archive.services.query import Query
from archive.services.reconcile import Reconcile
from archive.services.rekey import Rekey
from archive.services.remove import Remove
from archive.services.replay import Replay
from archive.services.retrieve import Retrieve
from archive.services.reviews import Reviews
from archive.services.segment_rows import SegmentRows
from archive.services.sending import Sending
from archive.services.sessions import Sessions
from archive.services.share_door import ShareDoor
from archive.services.shares import Shares
from archive.services.shred import Shred
from archive.services.signin import SignIn
from archive.services.store import Store
from archive.services.study_work import StudyWork
from archive.services.tiles import Tiles
from archive.services.upkeep import Upkeep
from archive.services.verify import Verify
from archive.services.webhooks import Webhooks
from archive.services.witnesses import Witnesses
from archive.services.workitem_watch import WorkitemWatch
from archive.services.workitems import Workitems
from archive.services.worklist import Worklist
from archive.vault.keystore import Keystore
from archive.vault.segments import DiskSegments
from archive.vault.vault import Vault

log = logging.getLogger("archive.services")
Role = Literal["serve", "dimse", "web", "background", "cli"]
SMALL_SEGMENT = 64 << 20
FIRST_SEGMENT = 16 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """Every use case of one process."""

    config: Config
    keyring: Keyring
    core: Core
    role: Role
    signin: SignIn
    oidc: Oidc
    identities: Identities
    factors: Factors
    sessions: Sessions
    shares: Shares
    share_door: ShareDoor
    albums: Albums
    accounts: Accounts
    policy: PolicyText
    approvals: Approvals
    peers: Peers
    store: Store
    query: Query
    retrieve: Retrieve
    download: Download
    sending: Sending
    worklist: Worklist
    steps: ProcedureSteps
    study_work: StudyWork
    commitments: Commitments
    deliveries: Deliveries
    forwarding: Forwarding
    association_log: AssociationLog
    pictures: Pictures
    workitems: Workitems
    workitem_watch: WorkitemWatch
    changefeed: ChangeFeed
    webhooks: Webhooks
    imports: Imports
    remove: Remove
    holds: Holds
    idempotency: Idempotency
    purge: Purge
    shred: Shred
    key_drill: KeyDrill
    rekey: Rekey
    reconcile: Reconcile
    verify: Verify
    oversight: Oversight
    alerts: Alerts
    delegation: Delegation
    access_requests: AccessRequests
    break_glass: BreakGlass
    witnesses: Witnesses
    printed: Printed
    tiles: Tiles
    arrival_rules: ArrivalRules
    audit_export: AuditExport
    reviews: Reviews
    ledger_replay: LedgerReplay
    audit_feed: AuditFeed
    disclosure: Disclosure
    keys: KeyringAdmin
    health: Health
    upkeep: Upkeep

    def start(self) -> str:
        """Make good what a crash left, and return why only reading is allowed, or nothing.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        why = self.core.read_only or self.oversight.rolled_back() or self.witnesses.at_start()
        if not why:
            CatchUp(self.core).run()
            Replay(self.core).run()
            self._finish_purges()
            self._finish_rotations()
            lifecycle.started(self.core)
        return why

    def _finish_purges(self) -> None:
        try:
            finish(self.core)
        except ArchiveError as error:
            log.warning("what is purged could not all be destroyed yet (%s); the upkeep goes on", error.code)

    def _finish_rotations(self) -> None:
        try:
            key_changes.finish(self.core)
        except ArchiveError as error:
            log.warning("a rotation of keys could not be finished yet (%s); the next start goes on", error.code)

    def close(self) -> None:
        """Close segments and databases; a command that changed something signs the ledger's head first."""
        self.core.vault.close()
        if self.role == "cli" and not self.core.read_only:
            self._last_checkpoint()
        self.core.database.close()
        self.core.keystore.close()

    def _last_checkpoint(self) -> None:
        try:
            self.upkeep.checkpoint()
            self.upkeep.snapshot()
        except ArchiveError:
            return  # the background worker, or the next command, does it


def open_node(
    config: Config, *, keyring: Keyring | None = None, role: Role = "cli", read_only: str = "", clock: Clock = utc_now
) -> Node:
    """Open the archive.

    Raises:
        KeysUnavailable: the keyring is absent, open to others, or does not open.
        DatabaseUnavailable, VaultUnavailable.
    """
    harden_process()
    keyring = keyring or Keyring.open(config)
    if role == "cli":
        setup.check_databases(config, keyring)
    database = setup.open_index(config, keyring)
    keystore = Keystore(setup.open_keystore(config, keyring), keyring)
    rows = SegmentRows(database, clock)
    small = role in {"web", "background", "cli"}
    largest = min(config.storage.segment_bytes, SMALL_SEGMENT) if small else config.storage.segment_bytes
    segments = DiskSegments(
        config.segments_dir, direct=config.storage.direct_io, reserve=config.storage.reserve,
        first_bytes=min(FIRST_SEGMENT, largest), segment_bytes=largest,
        on_open=rows.opened, on_close=rows.closed, on_drop=rows.dropped,
    )
    core = Core(
        config=config, keyring=keyring, database=database, keystore=keystore, vault=Vault(segments, keystore, config.cache_dir),
        ledger=Ledger(keyring), clock=clock, read_only=read_only,
    )
    if role == "cli" and not read_only:
        # No server has looked at the anchors for this command.
        core = replace(core, read_only=Oversight(core).rolled_back())
    store, read_only, alerts = Store(core), core.read_only, Alerts(core)
    sending, deliveries = Sending(core), Deliveries(core)
    rights: dict[str, Any] = {
        "default_issuer": config.identity.issuer, "read_only": read_only, "two_person": config.policy.two_person,
    }
    accounts = Accounts(database, core.ledger, keyring, clock, **rights)
    policy_text, purge, shred = PolicyText(database, core.ledger, keyring, clock, **rights), Purge(core), Shred(core)
    return Node(
        config=config, keyring=keyring, core=core, role=role,
        signin=SignIn(database, core.ledger, keyring, config, clock),
        oidc=Oidc(database, core.ledger, keyring, config, clock),
        identities=Identities(database, core.ledger, config, clock, read_only=read_only),
        factors=Factors(database, core.ledger, keyring, config, clock, read_only=read_only),
        sessions=Sessions(database, core.ledger, clock, read_only=read_only), shares=Shares(core), share_door=ShareDoor(core),
        albums=Albums(core),
        accounts=accounts, policy=policy_text, approvals=Approvals(core, operations.registry(accounts, policy_text, purge, shred)),
        peers=Peers(database, core.ledger, keyring, clock, config, read_only=read_only),
        store=store, query=Query(database, core.ledger, clock), retrieve=Retrieve(core), download=Download(core), sending=sending,
        worklist=Worklist(core), steps=ProcedureSteps(core), study_work=StudyWork(core), commitments=Commitments(core),
        deliveries=deliveries,
        forwarding=Forwarding(core, sending, deliveries),
        association_log=AssociationLog(core),
        pictures=Pictures(core), workitems=Workitems(core), workitem_watch=WorkitemWatch(core),
        changefeed=ChangeFeed(core), webhooks=Webhooks.of(core), imports=Imports(core, store),
        remove=Remove(core), holds=Holds(core), idempotency=Idempotency(core), purge=purge, shred=shred,
        key_drill=KeyDrill(core), rekey=Rekey(core),
        reconcile=Reconcile(core), verify=Verify(core), oversight=Oversight(core), alerts=alerts,
        witnesses=Witnesses(core), printed=Printed(core), tiles=Tiles(core), arrival_rules=ArrivalRules(core),
        audit_export=AuditExport(core),
        ledger_replay=LedgerReplay(core), reviews=Reviews(core),
        audit_feed=AuditFeed(core), disclosure=Disclosure(core),
        delegation=Delegation(core), access_requests=AccessRequests(core), break_glass=BreakGlass(core, alerts),
        keys=KeyringAdmin(core), health=Health(core), upkeep=Upkeep(core),
    )
