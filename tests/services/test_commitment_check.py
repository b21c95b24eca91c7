"""What the archive answers for to whom: the bytes that somebody sent, and no others under their UID."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import audit_event
from archive.ledger.audit import Kind
from archive.services.commitment_check import COMMITTED, NO_SUCH_INSTANCE, PROCESSING_FAILURE, Checker, Reference
from tests.services import archives


def test_who_sent_what_another_took_the_place_of_is_not_told_that_it_is_kept(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        for name in ("first", "again", "corrector"):
            node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        first, again, corrector = (archives.user(node, name) for name in ("first", "again", "corrector"))
        data = archives.instance()
        assert archives.store(node, data, subject=first).status == "stored"
        assert archives.store(node, data, subject=again).status == "duplicate"
        asked = Reference(archives.CT, "1.2.3.1.1")
        assert [Checker(node.core, who, 1).check(asked).reason for who in (first, again)] == [COMMITTED, COMMITTED]
        assert archives.store(node, archives.instance(StudyDescription="corrected"), subject=corrector).status == "conflict"
        (waiting,) = node.reconcile.list(console)
        node.reconcile.accept(console, waiting["id"], reason="the modality corrected it")
        found = [Checker(node.core, who, 1).check(asked).reason for who in (first, again, corrector)]
        assert found == [NO_SUCH_INSTANCE, NO_SUCH_INSTANCE, COMMITTED]
        assert archives.store(node, archives.instance(StudyDescription="corrected"), subject=again).status == "duplicate"
        assert Checker(node.core, again, 1).check(asked).reason == COMMITTED


def test_who_sent_bytes_that_were_decided_against_is_not_told_that_those_are_kept(tmp_path: Path) -> None:
    """Whoever may see the others, or sent them too: what counts is what it sent last."""
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        for name in ("first", "second", "third", "reader"):
            node.accounts.add_user(console, name, roles=["technologist", "modality"], password=archives.PASSWORD)
            node.accounts.add_grant(console, to=name, role="radiologist", target=Target("everything"))
        first, second, third, reader = (archives.user(node, name) for name in ("first", "second", "third", "reader"))
        kept, other = archives.instance(), archives.instance(StudyDescription="another")
        asked = Reference(archives.CT, "1.2.3.1.1")

        def told() -> list[int]:
            return [Checker(node.core, who, 1).check(asked).reason for who in (first, second, third, reader)]

        assert archives.store(node, kept, subject=first).status == "stored"
        assert archives.store(node, other, subject=second).status == "conflict"
        assert told() == [COMMITTED, PROCESSING_FAILURE, COMMITTED, COMMITTED]
        assert archives.store(node, other, subject=third).status == "conflict"
        assert told() == [COMMITTED, PROCESSING_FAILURE, PROCESSING_FAILURE, COMMITTED], "the same bytes again"
        (waiting,) = node.reconcile.list(console)
        node.reconcile.reject(console, waiting["id"], reason="not ours")
        assert told() == [COMMITTED, PROCESSING_FAILURE, PROCESSING_FAILURE, COMMITTED]
        assert archives.store(node, kept, subject=second).status == "duplicate"
        assert archives.store(node, other, subject=first).decided
        assert told() == [PROCESSING_FAILURE, COMMITTED, PROCESSING_FAILURE, COMMITTED]


def test_who_sent_what_was_replaced_is_not_told_that_the_others_are_theirs(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        for name in ("first", "corrector"):
            node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
            node.accounts.add_grant(console, to=name, role="radiologist", target=Target("everything"))
        first, corrector = archives.user(node, "first"), archives.user(node, "corrector")
        archives.store(node, archives.instance(), subject=first)
        archives.store(node, archives.instance(StudyDescription="corrected"), subject=corrector)
        (waiting,) = node.reconcile.list(console)
        node.reconcile.accept(console, waiting["id"], reason="the modality corrected it")
        asked = Reference(archives.CT, "1.2.3.1.1")
        assert [Checker(node.core, who, 1).check(asked).reason for who in (first, corrector)] == [PROCESSING_FAILURE, COMMITTED]


def test_a_study_that_is_sealed_anew_makes_nobody_the_sender_of_the_others_bytes(tmp_path: Path) -> None:
    """Though the event of what is kept is the newest now; whoever sends it again is its sender."""
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        node.accounts.add_user(console, "ct", roles=["technologist"], password=archives.PASSWORD)
        ct, asked = archives.user(node, "ct"), Reference(archives.CT, "1.2.3.1.1")
        archives.store(node, archives.instance(), subject=ct)
        archives.store(node, archives.instance(StudyDescription="another"), subject=ct)
        (waiting,) = node.reconcile.list(console)
        node.reconcile.reject(console, waiting["id"], reason="not ours")
        node.purge.run(console, study="1.2.3", reason="test")
        assert Checker(node.core, ct, 1).check(asked).reason == PROCESSING_FAILURE
        node.rekey.study(console, "1.2.3")
        assert Checker(node.core, ct, 1).check(asked).reason == PROCESSING_FAILURE
        archives.store(node, archives.instance(), subject=ct)
        node.rekey.study(console, "1.2.3")
        assert Checker(node.core, ct, 1).check(asked).reason == COMMITTED


def test_who_sent_what_the_ledger_no_longer_tells_gets_an_answer(tmp_path: Path) -> None:
    """The transaction waited for ever; whoever else sent it, and other studies, are answered for as ever."""
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        for name in ("first", "again", "reader"):
            node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        node.accounts.add_grant(console, to="reader", role="radiologist", target=Target("everything"))
        first, again, reader = (archives.user(node, name) for name in ("first", "again", "reader"))
        for study in ("1.2.3", "1.2.4"):
            for who in (first, again, reader):
                archives.store(node, archives.instance(study=study), subject=who)
        with node.core.database.begin() as tx:
            told = sa.select(audit_event).where(audit_event.c.kind == Kind.DUPLICATE.label).order_by(audit_event.c.n)
            for row in tx.execute(told).all()[:2]:
                tx.execute(sa.update(audit_event).where(audit_event.c.n == row.n).values(body=row.body[:-1] + b"?"))
        asked, other = Reference(archives.CT, "1.2.3.1.1"), Reference(archives.CT, "1.2.4.1.1")
        found = [[Checker(node.core, who, 1).check(one).reason for who in (first, again, reader)] for one in (asked, other)]
        assert found == [[COMMITTED, NO_SUCH_INSTANCE, PROCESSING_FAILURE], [COMMITTED] * 3]
