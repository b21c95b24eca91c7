"""The opened archive: every room built once, by hand, in the order they stand on each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

from archive.config import Config
from archive.errors import ArchiveError
from archive.keys.hygiene import harden_process
from archive.keys.keyring import Keyring
from archive.ledger.log import Ledger
from archive.services import lifecycle, setup
from archive.services.accounts import Accounts
from archive.services.alerts import Alerts
from archive.services.association_log import AssociationLog
from archive.services.catchup import CatchUp
from archive.services.changefeed import ChangeFeed
from archive.services.clock import Clock, utc_now
from archive.services.commitments import Commitments
from archive.services.core import Core
from archive.services.deliveries import Deliveries
from archive.services.disclosure import Disclosure
from archive.services.download import Download
from archive.services.factors import Factors
from archive.services.forwarding import Forwarding
from archive.services.health import Health
from archive.services.holds import Holds
from archive.services.idempotency import Idempotency
from archive.services.imports import Imports
from archive.services.keyring import KeyringAdmin
from archive.services.mpps import ProcedureSteps
from archive.services.oversight import Oversight
from archive.services.peers import Peers
from archive.services.pictures import Pictures
from archive.services.purge import Purge
from archive.services.purge_finish import finish
from archive.services.query import Query
from archive.services.reconcile import Reconcile
from archive.services.remove import Remove
from archive.services.replay import Replay
from archive.services.retrieve import Retrieve
from archive.services.segment_rows import SegmentRows
from archive.services.sending import Sending
from archive.services.sessions import Sessions
from archive.services.signin import SignIn
from archive.services.store import Store
from archive.services.study_work import StudyWork
from archive.services.upkeep import Upkeep
from archive.services.verify import Verify
from archive.services.webhooks import Webhooks
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
    factors: Factors
    sessions: Sessions
    accounts: Accounts
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
    reconcile: Reconcile
    verify: Verify
    oversight: Oversight
    alerts: Alerts
    disclosure: Disclosure
    keys: KeyringAdmin
    health: Health
    upkeep: Upkeep

    def start(self) -> str:
        """Make good what a crash left, and return why only reading is allowed, or nothing.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        why = self.core.read_only or self.oversight.rolled_back()
        if not why:
            CatchUp(self.core).run()
            Replay(self.core).run()
            self._finish_purges()
            lifecycle.started(self.core)
        return why

    def _finish_purges(self) -> None:
        try:
            finish(self.core)
        except ArchiveError as error:
            log.warning("what is purged could not all be destroyed yet (%s); the upkeep goes on", error.code)

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
    store, read_only = Store(core), core.read_only
    sending, deliveries = Sending(core), Deliveries(core)
    return Node(
        config=config, keyring=keyring, core=core, role=role,
        signin=SignIn(database, core.ledger, keyring, config, clock),
        factors=Factors(database, core.ledger, keyring, config, clock, read_only=read_only),
        sessions=Sessions(database, core.ledger, clock, read_only=read_only),
        accounts=Accounts(database, core.ledger, keyring, clock, default_issuer=config.identity.issuer, read_only=read_only),
        peers=Peers(database, core.ledger, keyring, clock, config, read_only=read_only),
        store=store, query=Query(database, core.ledger, clock), retrieve=Retrieve(core), download=Download(core), sending=sending,
        worklist=Worklist(core), steps=ProcedureSteps(core), study_work=StudyWork(core), commitments=Commitments(core),
        deliveries=deliveries,
        forwarding=Forwarding(core, sending, deliveries),
        association_log=AssociationLog(core),
        pictures=Pictures(core), workitems=Workitems(core), workitem_watch=WorkitemWatch(core),
        changefeed=ChangeFeed(core), webhooks=Webhooks.of(core), imports=Imports(core, store),
        remove=Remove(core), holds=Holds(core), idempotency=Idempotency(core), purge=Purge(core),
        reconcile=Reconcile(core), verify=Verify(core), oversight=Oversight(core), alerts=Alerts(core), disclosure=Disclosure(core),
        keys=KeyringAdmin(core), health=Health(core), upkeep=Upkeep(core),
    )
