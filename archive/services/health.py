"""Health: what is wrong, and how to mend it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from archive.access import roles
from archive.access.permissions import Permission
from archive.config import Config
from archive.db.tables import archive_state, checkpoint, credential, peer
from archive.errors import ArchiveError, KeysUnavailable
from archive.keys import ca, keyring_file
from archive.services import alerts, audit_feed, candidates, clock_doubt, last_backup, reviews, unreviewed, witness_state
from archive.services.clock import machine_now
from archive.services.core import Core
from archive.services.key_drill import DRILLED_AT, DRILLED_OK
from archive.services.last_backup import Check
from archive.services.lifecycle import SET_BACK
from archive.vault.disk import reserve_bytes

WARN_AHEAD = timedelta(days=30)
DRILL_EVERY = timedelta(days=90)


def space(config: Config) -> Check:
    """Return whether the disk has room for what comes."""
    usage = shutil.disk_usage(config.storage_dir)
    free, kept = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f}", reserve_bytes(config.storage.reserve, usage.total)
    if kept >= usage.total > 0:
        what = f'{free}: the reserve of "{config.storage.reserve}" is larger than the storage disk, every store is refused'
        return Check("space", "problem", what, "lower [storage] reserve")
    if usage.free > kept:
        return Check("space", "ok", free)
    return Check("space", "problem", f"{free}: the reserve is reached, stores are refused", "free space on the storage disk")


class Health:
    """Reads only."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        self._witnesses = witness_state.Settings(core.config)

    def ready(self) -> bool:
        """Whether the database answers; nothing else is told to strangers."""
        try:
            with self._core.database.read() as tx:
                tx.execute(sa.select(archive_state.c.name).limit(1)).all()
        except ArchiveError:
            return False
        return True

    def checks(self) -> list[Check]:
        """Return every check, problems first."""
        found = [
            *self._storage(), *self._clock(), *self._keys(), *self._certificates(), *self._doors(), *self._ledger(), *self._searches(),
            *self._emergencies(), *self._duties(),
        ]
        order = {"problem": 0, "warning": 1, "ok": 2}
        return sorted(found, key=lambda check: order[check.state])

    def banners(self) -> list[Check]:
        """Return what the first page tells every reader: recovery kit, certificate, backup."""
        shown = {"recovery kit", "server certificate", "backup", "backup drill", "read-only", "space", "outside witness"}
        return [check for check in self.checks() if check.name in shown and (check.state != "ok" or check.name == "outside witness")]

    def _storage(self) -> list[Check]:
        core = self._core
        found = []
        if core.read_only:
            found.append(Check("read-only", "problem", core.read_only, "read docs/operate.md, then 'archive ledger acknowledge'"))
        found.append(space(core.config))
        with core.database.read() as tx:
            backup = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == "last_backup_at")).scalar()
            drill = tx.execute(sa.select(archive_state.c.value).where(archive_state.c.name == "last_drill_ok")).scalar()
        found.append(last_backup.check(backup, core.clock(), core.config.backup.warn_days))
        if drill == "no":
            found.append(Check("backup drill", "problem", "the last drill found that the backup cannot be relied on",
                               "make another with 'archive backup DIR', then 'archive backup drill'"))
        if not core.config.storage.direct_io:
            found.append(Check("direct input/output", "ok", "switched off; segments are written through the page cache"))
        return found

    def _clock(self) -> list[Check]:
        at, now = self._core.clock(), machine_now(self._core.clock)
        with self._core.database.read() as tx:
            found = clock_doubt.check(tx, now)
        if at - now > SET_BACK:
            found.append(Check(
                "clock", "warning", f"the machine's clock says {now:%Y-%m-%d %H:%M} UTC and was set back: the archive's stands at "
                f"{at:%Y-%m-%d %H:%M} until then", "run NTP; once the machine's clock is there again it goes on by itself"))
        return found

    def _drilled(self) -> list[Check]:
        """Remind of trying the keys: first when the archive is as old as a drill may be."""
        core = self._core
        with core.database.read() as tx:
            query = sa.select(archive_state.c.name, archive_state.c.value).where(archive_state.c.name.in_([DRILLED_AT, DRILLED_OK]))
            said = {row.name: row.value for row in tx.execute(query)}
        remedy = "run 'archive key drill', with the recovery kit from its safe"
        if said.get(DRILLED_OK) == "no":
            return [Check("key drill", "problem", "the last one found something that does not open", remedy)]
        begun = min(key.not_before for key in core.keyring.public_keys())
        last = datetime.fromisoformat(said[DRILLED_AT]) if DRILLED_AT in said else None
        if core.clock() - (last or begun) > DRILL_EVERY:
            detail = f"the last one is of {last:%Y-%m-%d}" if last else "nobody has tried yet that everything opens that should"
            return [Check("key drill", "warning", f"{detail}; {DRILL_EVERY.days} days is long", remedy)]
        return [Check("key drill", "ok", f"the last one is of {last:%Y-%m-%d}")] if last else []

    def _keys(self) -> list[Check]:
        core = self._core
        found: list[Check] = []
        kinds: set[str] = set()
        key_file = core.config.key_file
        if key_file.exists() and key_file.stat().st_dev == core.config.segments_dir.stat().st_dev:
            found.append(
                Check("key file", "warning", "the key file lies on the same disk as the data: a stolen disk would open",
                      "move it to another disk or a USB stick and set keys.key_file")
            )
        found += self._drilled()
        with suppress(KeysUnavailable):  # without the keyring nobody would be here to ask
            kinds = {slot.kind for slot in keyring_file.load(core.config.keys_dir / "keyring.json").slots}
        if "recovery" in kinds:
            found.append(Check("recovery kit", "ok", "a recovery slot is there; keep its kit away from this machine"))
        else:
            found.append(
                Check("recovery kit", "warning", "there is no recovery kit: if the key file is lost, everything is",
                      "run 'archive key slot add --recovery-kit FILE' and keep that file elsewhere")
            )
        with core.database.read() as tx:
            waiting = tx.execute(sa.select(sa.func.count()).select_from(credential).where(credential.c.must_change)).scalar_one()
        if (core.config.storage_dir / "first-password").exists() or waiting:
            found.append(
                Check("first password", "warning", "a password that was handed out has not been changed yet", "sign in and change it")
            )
        return found

    def _certificates(self) -> list[Check]:
        core = self._core
        now = machine_now(core.clock)
        found = []
        path = core.config.tls_dir / "server.pem"
        if path.exists():
            ends = ca.not_after(path.read_bytes())
            state: Literal["ok", "warning", "problem"] = "ok" if ends > now + WARN_AHEAD else "warning" if ends > now else "problem"
            remedy = "" if state == "ok" else "restart the archive: it renews itself"
            found.append(Check("server certificate", state, f"valid until {ends:%Y-%m-%d}", remedy))
        with core.database.read() as tx:
            rows = tx.execute(
                sa.select(peer.c.name, peer.c.certificate_not_after)
                .where(peer.c.enabled, peer.c.certificate_not_after.is_not(None), peer.c.certificate_not_after < now + WARN_AHEAD)
            ).all()
        found += [
            Check("peer certificate", "warning", f"the certificate of {row.name} ends {row.certificate_not_after:%Y-%m-%d}",
                  f"run 'archive peer renew {row.name}' and install the new files there")
            for row in rows
        ]
        return found

    def _doors(self) -> list[Check]:
        dimse = self._core.config.dimse
        if dimse.plain.enabled:
            networks = ", ".join(dimse.plain.networks)
            return [
                Check("plain listener", "warning", f"DICOM without TLS is open to {networks}: names and images travel in clear there",
                      "move modalities that can to TLS ('archive peer add NAME --aet AET --issue DIR')")
            ]
        return []

    def _duties(self) -> list[Check]:
        on = self._core.config.policy.two_person
        with self._core.database.read() as tx:
            many = len(roles.holders(tx, Permission.ROLE_MANAGE, at=self._core.clock()))
        if on and many < 2:
            return [Check("two people", "warning", "two_person is on, and there is nobody to approve what another asks for",
                          "turn it off, 'archive role assign security-officer --to NAME' for a second person, turn it on")]
        if not on and many > 1:
            detail = f"each of {many} who manage roles decides alone; [policy] two_person = true lets another approve"
            return [Check("two people", "ok", detail)]
        return [Check("two people", "ok", "what takes two waits for the second" if on else "one person has all duties")]

    def _emergencies(self) -> list[Check]:
        with self._core.database.read() as tx:
            late, waiting = len(unreviewed.overdue(tx, self._core.clock())), unreviewed.waiting(tx)
        if late:
            return [Check("break-glass", "problem", f"{late} opened more than 3 days ago and reviewed by nobody",
                          "look at each: 'archive break-glass list', then 'archive break-glass review ID'")]
        return [Check("break-glass", "ok", f"{waiting} wait for a review" if waiting else "every one is reviewed")]

    def _searches(self) -> list[Check]:
        with self._core.database.read() as tx:
            at = candidates.healed_at(tx)
        if at is None or self._core.clock() - at > candidates.TOLD_FOR:
            return []
        return [
            Check("searches", "warning", f"until {at:%Y-%m-%d %H:%M} UTC searches may have missed studies; what was missing was made good",
                  "run 'archive verify': it tells whether the index was edited; should this come again, stop the archive and give "
                  "'archive rebuild-index'")
        ]

    def _collector(self, feed: audit_feed.Told | None) -> list[Check]:
        host = self._core.config.syslog.host
        if not host:
            return []
        if feed is None or feed.failing_since is None:
            return [Check("syslog", "ok", f"the audit log is told to {host}")]
        since = f"{feed.failing_since:%Y-%m-%d %H:%M} UTC"
        return [
            Check("syslog", "warning", f"the audit log waits for its collector since {since}: {feed.problem}",
                  "look at [syslog] and the collector, then 'archive audit syslog test'; nothing is lost meanwhile")
        ]

    def _ledger(self) -> list[Check]:
        with self._core.database.read() as tx:
            latest = tx.execute(sa.select(sa.func.max(checkpoint.c.size))).scalar()
            waiting = alerts.open_count(tx)
            late = reviews.overdue(tx, self._core.clock())
            feed = audit_feed.state(tx)
        found = [Check("ledger", "ok", f"the last signed checkpoint covers {latest or 0} leaves")]
        found += self._collector(feed)
        found.append(
            Check("alerts", "warning", f"{waiting} found in the audit log wait to be looked at", "'archive alert list' shows them")
            if waiting else Check("alerts", "ok", "nothing waits to be looked at")
        )
        if late:
            found.append(Check("access reviews", "warning", f"{len(late)} should have been closed by now, first: {late[0]}",
                               "'archive review list' numbers them; decide what is left, then 'archive review close ID'"))
        outside = witness_state.standing(self._core, self._witnesses.now(), self._core.clock())
        found.append(Check("outside witness", outside.state, outside.detail, outside.remedy))
        return found
