"""The opened archive: what everything stands on built once, by hand, in order; a use case when it is first asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from archive.config import Config
from archive.errors import ArchiveError
from archive.keys.hygiene import harden_process
from archive.keys.keyring import Keyring
from archive.ledger.log import Ledger
from archive.services import heads, last_known, restoring, setup
from archive.services.clock import Clock, SteadyClock, utc_now
from archive.services.core import Core
from archive.services.oversight import Oversight
from archive.services.segment_rows import SegmentRows
from archive.services.snapshot import Snapshots
from archive.services.work_snapshot import WorkSnapshots
from archive.vault.keystore import Keystore
from archive.vault.segments import DiskSegments
from archive.vault.vault import Vault

if TYPE_CHECKING:
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
    from archive.services.changefeed import ChangeFeed
    from archive.services.commitments import Commitments
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
    from archive.services.peers import Peers
    from archive.services.pictures import Pictures
    from archive.services.policy_text import PolicyText
    from archive.services.printed import Printed
    from archive.services.purge import Purge
    from archive.services.query import Query
    from archive.services.reconcile import Reconcile
    from archive.services.rekey import Rekey
    from archive.services.remove import Remove
    from archive.services.retrieve import Retrieve
    from archive.services.reviews import Reviews
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

log = logging.getLogger("archive.services")
Role = Literal["serve", "dimse", "web", "background", "cli"]
SMALL_SEGMENT = 64 << 20
FIRST_SEGMENT = 16 << 20


class Node:
    """Every use case of one process: each is made once, when it is first asked for, and its module imported then."""

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

    def __init__(self, core: Core, role: Role) -> None:
        """Work on what `open_node` opened."""
        self.config: Config = core.config
        self.keyring: Keyring = core.keyring
        self.core = core
        self.role: Role = role
        self._making = threading.RLock()  # one needs another

    def __getattr__(self, name: str) -> Any:
        """Make a use case; afterwards it is an attribute like any other."""
        if name not in USE_CASES:
            message = f"an archive has no {name}"
            raise AttributeError(message)
        with self._making:
            if name not in self.__dict__:
                self.__dict__[name] = _HOW.get(name, _of_core)(self, use_case(name))
            return self.__dict__[name]

    def start(self) -> str:
        """Make good what a crash left, and return why only reading is allowed, or nothing.

        Raises:
            DatabaseUnavailable, VaultUnavailable.
        """
        from archive.services import lifecycle
        from archive.services.catchup import CatchUp
        from archive.services.replay import Replay

        why = self.core.read_only or self.oversight.rolled_back() or self.witnesses.at_start()
        if not why:
            CatchUp(self.core).run()
            Replay(self.core).run()
            self._finish_purges()
            self._say_whose()
            self._finish_rotations()
            lifecycle.started(self.core)
        return why

    def _finish_purges(self) -> None:
        from archive.services.purge_finish import finish

        try:
            finish(self.core)
        except ArchiveError as error:
            log.warning("what is purged could not all be destroyed yet (%s); the upkeep goes on", error.code)

    def _say_whose(self) -> None:
        from archive.services import named_before

        try:
            named_before.say(self.core)
        except ArchiveError as error:
            log.warning("whose some studies are could not be said yet (%s); the next start does", error.code)

    def _finish_rotations(self) -> None:
        from archive.services import key_changes

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
            heads.sign(self.core, beats=False)
            work = WorkSnapshots(self.core)
            if work.behind():
                work.tick(now=True)
            Snapshots(self.core).tick(patient=True)
        except ArchiveError:
            return  # the background worker, or the next command, does it


USE_CASES: dict[str, str] = Node.__annotations__
"""The attributes of a node that are made when asked for, and the class of each."""

_ELSEWHERE = {"policy": "policy_text", "steps": "mpps", "arrival_rules": "arrival_admin", "keys": "keyring"}
"""The modules that are not called as the attribute."""


def use_case(name: str) -> Any:
    """Import a use case and return its class."""
    return getattr(import_module(f"archive.services.{_ELSEWHERE.get(name, name)}"), USE_CASES[name])


def _of_core(node: Node, made: Any) -> Any:
    return made(node.core)


def _rights(node: Node, made: Any) -> Any:
    core = node.core
    into_groups = any(bool(one.bind_by and one.groups) for one in (core.config.oidc, core.config.ldap))
    return made(core.database, core.ledger, core.keyring, core.clock, default_issuer=core.config.identity.issuer,
                read_only=core.read_only, two_person=core.config.policy.two_person, binds_into_groups=into_groups)


def _door(node: Node, made: Any) -> Any:
    core = node.core
    return made(core.database, core.ledger, core.keyring, core.config, core.clock)


def _factors(node: Node, made: Any) -> Any:
    core = node.core
    return made(core.database, core.ledger, core.keyring, core.config, core.clock, read_only=core.read_only)


def _identities(node: Node, made: Any) -> Any:
    core = node.core
    return made(core.database, core.ledger, core.config, core.clock, read_only=core.read_only)


def _sessions(node: Node, made: Any) -> Any:
    core = node.core
    return made(core.database, core.ledger, core.clock, read_only=core.read_only)


def _peers(node: Node, made: Any) -> Any:
    core = node.core
    return made(core.database, core.ledger, core.keyring, core.clock, core.config, read_only=core.read_only)


def _query(node: Node, made: Any) -> Any:
    return made(node.core.database, node.core.ledger, node.core.clock)


def _approvals(node: Node, made: Any) -> Any:
    from archive.services import operations

    return made(node.core, operations.registry(node.accounts, node.policy, node.purge, node.shred))


_HOW: dict[str, Callable[[Node, Any], Any]] = {
    "signin": _door, "oidc": _door, "identities": _identities, "factors": _factors, "sessions": _sessions,
    "accounts": _rights, "policy": _rights, "approvals": _approvals, "peers": _peers, "query": _query,
    "forwarding": lambda node, made: made(node.core, node.sending, node.deliveries),
    "imports": lambda node, made: made(node.core, node.store),
    "break_glass": lambda node, made: made(node.core, node.alerts),
    "webhooks": lambda node, made: made.of(node.core),
}
"""How those are made that take something else than the core."""


def load() -> None:
    """Import every use case: what forks afterwards shares them."""
    for name in USE_CASES:
        use_case(name)


def compile_statements() -> None:
    """Compile what every process asks an embedded database: what forks afterwards shares that, and the pages it would have written."""
    from archive.access.subject import Subject
    from archive.db import connect, prepared
    from archive.index import locate

    for scope in locate.usual_scopes(Subject(0, "", "user", "internal"), utc_now()):
        locate.build(scope.shape)
    prepared.compile_all(connect.sqlite_dialect())


def open_node(
    config: Config, *, keyring: Keyring | None = None, role: Role = "cli", read_only: str = "", clock: Clock | None = None
) -> Node:
    """Open the archive, with the machine's clock that is never set back by a little unless another is given.

    Raises:
        KeysUnavailable: the keyring is absent, open to others, or does not open.
        DatabaseUnavailable, VaultUnavailable.
    """
    harden_process()
    keyring = keyring or Keyring.open(config)
    if role in {"serve", "cli"}:
        restoring.sweep(config)
    if role == "cli":
        setup.check_databases(config, keyring)
    database = setup.open_index(config, keyring)
    keystore = Keystore(setup.open_keystore(config, keyring), keyring)
    clock = clock or SteadyClock()
    last_known.hear(clock, database)
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
    return Node(core, role)
