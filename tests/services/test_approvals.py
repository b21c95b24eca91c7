"""Two people: what one asks another approves, with exactly what was asked for, once, within a day; nobody agrees with themselves."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import approval, audit_event
from archive.errors import ArchiveError, AwaitsApproval, Forbidden, NotFound, SealBroken, StateConflict
from archive.node import Node
from archive.services import approvals, two_person
from archive.services.approval_check import approved
from tests.services import archives

EVERYTHING = Target("everything")


class Desk:
    """An archive in which two people decide, and its clock."""

    def __init__(self, node: Node, at: list[datetime]) -> None:
        self.node, self.at = node, at
        self.console = archives.the_console(node)
        self.accounts, self.approvals = node.accounts, node.approvals

    def staff(self, name: str, *roles: str) -> Subject:
        """A user with roles, given past the two people, signed in with the browser."""
        self.node.accounts._two_person = False
        self.accounts.add_user(self.console, name, roles=roles, password=archives.PASSWORD)
        self.node.accounts._two_person = True
        return self.signed_in(name)

    def signed_in(self, name: str) -> Subject:
        begun = self.node.signin.password(name, archives.PASSWORD, address="192.0.2.7", user_agent="test")
        return begun.subject  # type: ignore[union-attr]

    def asks(self, work: Callable[[], object]) -> int:
        """The number of the request that `work` comes to."""
        with pytest.raises(AwaitsApproval) as asked:
            work()
        return asked.value.approval

    def state(self, number: int) -> str:
        return str(self.approvals.show(self.console, number)["state"])

    def told(self, kind: str = "approval") -> list[dict[str, Any]]:
        found = self.node.oversight.search(self.console, kinds=[kind])
        return [row["body"]["detail"] for row in found]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One archive for all: its requests are told apart by their numbers."""
    at = [datetime.now(UTC)]  # the archive was made before that
    config = archives.made(tmp_path_factory.mktemp("two"), policy={"two_person": True})
    with archives.opened(config, clock=lambda: at[0]) as node:
        desk = Desk(node, at)
        desk.staff("ann", "security-officer", "administrator")
        desk.staff("ben", "security-officer", "administrator")
        desk.staff("cleo", "auditor")
        desk.accounts.add_user(desk.console, "dora", password=archives.PASSWORD)
        yield desk


@pytest.fixture
def desk(opened: Desk) -> Desk:
    """The archive, an hour later."""
    opened.at[0] += timedelta(hours=1)
    return opened


def test_one_asks_another_approves_and_it_is_done_once(desk: Desk) -> None:
    ann, ben = desk.signed_in("ann"), desk.signed_in("ben")
    number = desk.asks(lambda: desk.accounts.assign_role(ann, "dora", "administrator", until="30d"))
    assert desk.accounts.show_user(ann, "dora")["roles"] == []
    assert desk.asks(lambda: desk.accounts.assign_role(ann, "dora", "administrator", until="30d")) == number, "the same asked again"
    assert [row["id"] for row in desk.approvals.listed(ben)][:1] == [number]
    desk.at[0] += timedelta(hours=2)
    done = desk.approvals.approve(desk.signed_in("ben"), number)
    assert (done["state"], done["asked_by"], done["decided_by"]) == ("done", "ann", "ben")
    assert desk.accounts.show_user(desk.console, "dora")["roles"] == ["administrator"]
    with pytest.raises(StateConflict):
        desk.approvals.approve(desk.signed_in("ben"), number)
    assert [one["what"] for one in desk.told()[:3]] == ["done", "approved", "asked"]
    bodies = [row["body"] for row in desk.node.oversight.search(desk.console, kinds=["role-changed"])]
    by = next(one["subject"] for one in bodies if one["detail"]["what"] == "assigned")
    assert (by["name"], by["approved_by"]) == ("ann", ben.principal_id)
    desk.accounts.withdraw_role(desk.console, "dora", "administrator")


def test_nobody_agrees_with_themselves_nor_by_a_token_nor_without_the_permission(desk: Desk) -> None:
    ann, ben = desk.signed_in("ann"), desk.signed_in("ben")
    number = desk.asks(lambda: desk.accounts.add_role(ann, "keepers", ["user-manage"]))
    for who, error in (
        (ann, Forbidden), (desk.console, Forbidden), (desk.signed_in("cleo"), Forbidden), (desk.signed_in("dora"), NotFound),
        (dataclasses.replace(ben, session_id=None), Forbidden),
    ):
        with pytest.raises(error):
            desk.approvals.approve(who, number)
        assert desk.state(number) == "waiting"
    with pytest.raises(NotFound):
        desk.approvals.show(desk.signed_in("dora"), number)
    assert desk.approvals.listed(desk.signed_in("dora")) == []
    desk.approvals.refuse(ben, number, note="no")
    assert desk.state(number) == "refused"
    with pytest.raises(StateConflict):
        desk.approvals.approve(ben, number)
    again = desk.asks(lambda: desk.accounts.add_role(ann, "keepers", ["user-manage"]))
    assert again != number
    desk.approvals.refuse(ann, again)  # her own, taken back
    assert desk.state(again) == "refused"


def test_a_token_asks_for_nothing(desk: Desk) -> None:
    ann = dataclasses.replace(desk.signed_in("ann"), session_id=None, via="internal", token_id=None)
    number = desk.asks(lambda: desk.accounts.add_role(ann, "k2", ["user-manage"]))
    desk.approvals.refuse(desk.signed_in("ben"), number)
    token = desk.accounts.create_token(desk.console, owner="ann", permissions=["role-manage"])["token"]
    asker = desk.node.signin.bearer(token, address="192.0.2.7")
    before = len(desk.approvals.listed(desk.console, every=True))
    with pytest.raises(Forbidden):
        desk.accounts.add_role(asker, "k3", ["user-manage"])
    assert len(desk.approvals.listed(desk.console, every=True)) == before


def test_requests_that_others_see_leave_none_of_ones_own_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = desk.signed_in("ann")
    number = desk.asks(lambda: desk.accounts.add_role(ann, "mine", ["user-manage"]))
    with desk.node.core.database.begin() as tx:
        row = dict(tx.execute(sa.select(approval).where(approval.c.id == number)).mappings().one())
        theirs = {**row, "id": number + 1, "asked_by": desk.console.principal_id, "need": 1 << 40}
        tx.execute(sa.insert(approval).values(theirs))
    monkeypatch.setattr(approvals, "MOST", 1)
    assert [one["id"] for one in desk.approvals.listed(ann)] == [number]
    with pytest.raises(NotFound):
        desk.approvals.show(ann, number + 1)
    with desk.node.core.database.begin() as tx:
        tx.execute(sa.delete(approval).where(approval.c.id == number + 1))
    desk.approvals.refuse(ann, number)


def test_what_comes_too_late_is_not_done(desk: Desk) -> None:
    number = desk.asks(lambda: desk.accounts.add_role(desk.signed_in("ann"), "late", ["user-manage"]))
    desk.at[0] += timedelta(hours=24)
    assert desk.state(number) == "expired"
    with pytest.raises(StateConflict):
        desk.approvals.approve(desk.signed_in("ben"), number)
    assert "late" not in {row["name"] for row in desk.accounts.list_roles(desk.console)}


def test_nobody_approves_what_gives_to_themselves(desk: Desk) -> None:
    ann, ben = desk.signed_in("ann"), desk.signed_in("ben")
    desk.accounts.add_group(desk.console, "chiefs")
    desk.accounts.join_group(desk.console, "chiefs", "ben")
    for to in ("ben", "chiefs"):
        number = desk.asks(lambda to=to: desk.accounts.assign_role(ann, to, "owner"))  # type: ignore[misc]
        assert desk.approvals.approve(ben, number)["state"] == "failed"
        assert "nobody changes their own rights" in desk.told()[0]["why"]
    assert "owner" not in desk.accounts.show_user(desk.console, "ben")["roles"]


def test_who_asked_and_may_no_more_gets_nothing(desk: Desk) -> None:
    eva = desk.staff("eva", "security-officer")
    number = desk.asks(lambda: desk.accounts.add_role(eva, "hers", ["user-manage"]))
    desk.accounts.disable_user(desk.console, "eva")
    assert desk.approvals.approve(desk.signed_in("ben"), number)["state"] == "failed"
    assert "hers" not in {row["name"] for row in desk.accounts.list_roles(desk.console)}


def test_every_operation_waits_for_the_second_and_then_happens(desk: Desk) -> None:
    a, console, ann = desk.accounts, desk.console, desk.signed_in("ann")
    archives.store(desk.node, archives.instance(1))
    a.add_grant(console, to="dora", role="referrer", target=EVERYTHING)
    dora = archives.user(desk.node, "dora")
    deny = a.add_grant(console, to="dora", role="referrer", target=Target("study", "1.2.3"), deny=True)
    a.add_role(console, "plain", ["search"])
    a.add_group(console, "veiled")
    a.join_group(console, "veiled", "dora")
    a.add_grant(console, to="veiled", role="referrer", target=EVERYTHING, deny=True)
    a.add_group(console, "gone")
    a.add_grant(console, to="gone", role="referrer", target=EVERYTHING, deny=True)
    text = desk.node.policy.export(console)
    less = text.replace('permissions = ["search"]', 'permissions = ["metadata"]')
    assert less != text
    for work in (
        lambda: desk.node.policy.apply(ann, less), lambda: a.revoke_grant(console, deny["id"], reason="over"),
        lambda: a.change_role(ann, "plain", add=["pixels"]),
        lambda: a.leave_group(console, "veiled", "dora"), lambda: a.remove_group(console, "gone"),
    ):
        before = a.show_role(console, "plain"), a.list_grants(console), a.list_groups(console)
        number = desk.asks(work)
        assert (a.show_role(console, "plain"), a.list_grants(console), a.list_groups(console)) == before
        boss = desk.signed_in("admin" if desk.approvals.show(console, number)["operation"] != "policy-apply" else "ben")
        assert desk.approvals.approve(boss, number)["state"] == "done", desk.told()[0]
    assert a.show_role(console, "plain")["permissions"] == ["metadata", "pixels"]
    assert seen(desk, dora) == {"1.2.3"}
    with pytest.raises(StateConflict, match="two people"):
        a.add_user(console, "fay", roles=["administrator"], password=archives.PASSWORD)
    a.add_user(console, "fay", roles=["radiologist"], password=archives.PASSWORD)


def seen(desk: Desk, who: Subject) -> set[str]:
    from archive.access import policy
    from archive.access.permissions import Permission
    from archive.db.tables import study

    scope = policy.scope_of(who, Permission.SEARCH, desk.at[0])
    with desk.node.core.database.read() as tx:
        return set(scope.run(tx, sa.select(study.c.study_instance_uid).where(scope.study(study))).scalars())


def test_nobody_becomes_the_other_one(desk: Desk) -> None:
    """Who set the other's password, or took the second factor away, could ask as one and approve as the other."""
    a, admin = desk.accounts, desk.signed_in("admin")
    for work in (
        lambda: a.reset_password(admin, "ben", "six boats upon a river"), lambda: a.reset_mfa(admin, "ben"),
        lambda: desk.node.identities.bind(admin, "ben", issuer="https://idp.example", external_subject="s"),
    ):
        with pytest.raises(Forbidden, match="two people"):
            work()
    a.reset_password(admin, "dora", archives.PASSWORD)
    with pytest.raises(StateConflict, match="two people"):
        desk.node.peers.add(desk.console, "CT9", ["CT9"], networks=["192.0.2.0/24"], roles=["owner"])


def test_nobody_becomes_who_is_switched_off_or_administers_later(desk: Desk) -> None:
    """Else one switches the other off, sets the password, switches on again, and is both."""
    a, admin = desk.accounts, desk.signed_in("admin")
    desk.staff("gus", "security-officer")
    a.add_user(desk.console, "hal", password=archives.PASSWORD)
    number = desk.asks(lambda: a.assign_role(desk.console, "hal", "auditor", since="2h"))
    desk.approvals.approve(desk.signed_in("ben"), number)
    a.disable_user(admin, "gus")
    for name in ("gus", "hal"):
        for work in (
            lambda: a.reset_password(admin, name), lambda: a.reset_mfa(admin, name),  # noqa: B023
            lambda: desk.node.identities.bind(admin, name, issuer="https://idp.example", external_subject="s"),  # noqa: B023
        ):
            with pytest.raises(Forbidden, match="two people"):
                work()


def test_joining_a_group_that_hides_anew_lifts_nothing_alone(desk: Desk) -> None:
    a, ann, at = desk.accounts, desk.signed_in("ann"), desk.at[0]
    a.add_group(desk.console, "kept out")
    a.add_grant(desk.console, to="kept out", role="referrer", target=EVERYTHING, deny=True)
    a.add_user(desk.console, "ivy", password=archives.PASSWORD)

    def window() -> tuple[datetime, datetime]:
        members = next(row for row in a.list_groups(desk.console) if row["name"] == "kept out")["members"]
        return next((row["from"], row["until"]) for row in members if row["name"] == "ivy")

    first = a.join_group(ann, "kept out", "ivy", until="3w")  # hides more, never less
    number = desk.asks(lambda: a.join_group(ann, "kept out", "ivy", since="2w", until="3w"))
    desk.asks(lambda: a.join_group(ann, "kept out", "ivy", until="2w"))
    assert window() == (first["from"], first["until"])
    assert desk.approvals.approve(desk.signed_in("ben"), number)["state"] == "done", desk.told()[0]
    assert window() == (at + timedelta(weeks=2), at + timedelta(weeks=3))
    a.join_group(ann, "kept out", "ivy", since="1w", until="4w")
    desk.at[0] += timedelta(weeks=2)
    ann = desk.signed_in("ann")
    a.join_group(ann, "kept out", "ivy", until="2w")  # what is over of the earlier one is not asked back
    desk.at[0] += timedelta(weeks=2)
    a.join_group(desk.signed_in("ann"), "kept out", "ivy", since="1w")


def test_a_role_that_changed_meanwhile_is_not_changed(desk: Desk) -> None:
    ann, a = desk.signed_in("ann"), desk.accounts
    a.add_role(desk.console, "moving", ["search"])
    first = desk.asks(lambda: a.change_role(ann, "moving", add=["pixels"]))
    second = desk.asks(lambda: a.change_role(ann, "moving", add=["metadata"]))
    assert desk.approvals.approve(desk.signed_in("ben"), second)["state"] == "done"
    assert desk.approvals.approve(desk.signed_in("ben"), first)["state"] == "failed"
    assert a.show_role(desk.console, "moving")["permissions"] == ["search", "metadata"]


def test_purge_is_approved_by_who_may_purge_all_of_it(desk: Desk) -> None:
    node, a = desk.node, desk.accounts
    for study in ("1.2.61", "1.2.62"):
        archives.store(node, archives.instance(1, study=study, PatientID=f"P{study}"))
        node.remove.reject(desk.console, "clinical", "study", study, reason="wrong")
    number = desk.asks(lambda: node.purge.run(desk.console, before=desk.at[0] + timedelta(seconds=1), reason="room"))
    a.add_grant(desk.console, to="cleo", role="owner", target=Target("study", "1.2.61"))
    with pytest.raises(Forbidden):
        desk.approvals.approve(desk.signed_in("cleo"), number)
    with pytest.raises(ArchiveError):
        desk.approvals.approve(desk.signed_in("ben"), number)
    assert desk.state(number) == "waiting"
    assert desk.approvals.approve(desk.signed_in("admin"), number)["state"] == "done"
    assert node.purge.run(desk.console, before=desk.at[0] + timedelta(seconds=1), reason="room", dry_run=True).instances == 0


@pytest.mark.parametrize("by", ["study", "time"])
def test_what_is_rejected_after_a_purge_was_asked_for_is_not_purged_by_it(desk: Desk, by: str) -> None:
    node, study = desk.node, {"study": "1.2.66", "time": "1.2.67"}[by]
    for n in (1, 2):
        archives.store(node, archives.instance(n, study=study, PatientID=f"P{study}"))
    node.remove.reject(desk.console, "clinical", "instance", f"{study}.1.1", reason="wrong")
    desk.at[0] += timedelta(seconds=1)
    what = {"study": study} if by == "study" else {"before": desk.at[0]}
    number = desk.asks(lambda: node.purge.run(desk.console, reason="room", **what))  # type: ignore[arg-type]
    desk.at[0] += timedelta(seconds=1)
    node.remove.reject(desk.console, "clinical", "instance", f"{study}.1.2", reason="by mistake")
    desk.at[0] += timedelta(seconds=1)
    assert desk.approvals.approve(desk.signed_in("admin"), number)["state"] == "done"
    assert node.purge.run(desk.console, study=study, reason="room", dry_run=True).instances == 1
    assert node.remove.restore(desk.console, "clinical", "instance", f"{study}.1.2", reason="it was right")


def test_who_may_purge_as_much_of_something_else_approves_no_purge(desk: Desk) -> None:
    node, a = desk.node, desk.accounts
    for study in ("1.2.63", "1.2.64", "1.2.65"):
        archives.store(node, archives.instance(1, study=study, PatientID=f"P{study}"))
        node.remove.reject(desk.console, "clinical", "study", study, reason="wrong")
    for name, studies in (("gita", ("1.2.63", "1.2.64")), ("hugo", ("1.2.64", "1.2.65"))):
        a.add_user(desk.console, name, password=archives.PASSWORD)
        for study in studies:
            a.add_grant(desk.console, to=name, role="owner", target=Target("study", study))
    before = desk.at[0] + timedelta(seconds=1)
    number = desk.asks(lambda: node.purge.run(desk.signed_in("gita"), before=before, reason="room"))
    with pytest.raises(Forbidden):
        desk.approvals.approve(desk.signed_in("hugo"), number)
    assert desk.state(number) == "waiting"
    a.add_grant(desk.console, to="hugo", role="owner", target=Target("study", "1.2.63"))
    assert desk.approvals.approve(desk.signed_in("hugo"), number)["state"] == "done"
    left = node.purge.run(desk.console, before=before, reason="room", dry_run=True)
    assert (left.studies, left.instances) == (1, 1), "what gita may not purge"
    again = desk.asks(lambda: node.purge.run(desk.signed_in("hugo"), before=before, reason="room"))
    with pytest.raises(Forbidden):
        desk.approvals.approve(desk.signed_in("gita"), again)
    assert desk.approvals.approve(desk.signed_in("admin"), again)["state"] == "done"


def test_keys_change_when_the_same_command_is_given_again(desk: Desk, tmp_path: Path) -> None:
    node = desk.node
    number = desk.asks(lambda: node.keys.slot_add(desk.console, key_file=tmp_path / "second.key", label="two"))
    assert desk.approvals.approve(desk.signed_in("ben"), number)["state"] == "approved"
    # Another was not approved.
    desk.asks(lambda: node.keys.slot_add(desk.console, key_file=tmp_path / "third.key", label="two"))
    slot = node.keys.slot_add(desk.console, key_file=tmp_path / "second.key", label="two")
    assert desk.state(number) == "done"
    again = desk.asks(lambda: node.keys.slot_add(desk.console, key_file=tmp_path / "second.key", label="two"))
    assert again != number
    desk.asks(lambda: node.keys.announce_index(desk.console))
    removal = desk.asks(lambda: node.keys.slot_remove(desk.console, slot))
    desk.approvals.approve(desk.signed_in("ann"), removal)
    node.keys.slot_remove(desk.console, slot)


def test_a_row_that_was_changed_or_copied_opens_nothing(desk: Desk) -> None:
    number = desk.asks(lambda: desk.accounts.add_role(desk.signed_in("ann"), "forged", ["user-manage"]))
    with desk.node.core.database.begin() as tx:
        row = dict(tx.execute(sa.select(approval).where(approval.c.id == number)).mappings().one())
        tx.execute(sa.insert(approval).values(**{**row, "id": 9999}))
    with pytest.raises(SealBroken):
        desk.approvals.approve(desk.signed_in("ben"), 9999)
    with desk.node.core.database.begin() as tx:
        tx.execute(sa.delete(approval).where(approval.c.id == 9999))
    done = desk.approvals.approve(desk.signed_in("ben"), number)
    assert done["state"] == "done"
    fresh = {"decision": "", "decided_by": None, "decided_at": None, "done_at": None, "outcome": ""}
    with desk.node.core.database.begin() as tx:
        tx.execute(sa.update(approval).where(approval.c.id == number).values(**fresh))
    with pytest.raises(StateConflict):
        desk.approvals.approve(desk.signed_in("ben"), number)
    for change in ({"expires_at": row["expires_at"] + timedelta(days=9)}, {"need": 0}, {"operation": "purge"}, {"asked_by": 1}):
        with desk.node.core.database.begin() as tx:
            tx.execute(sa.update(approval).where(approval.c.id == number).values(**change))
        with pytest.raises(ArchiveError):
            desk.approvals.approve(desk.signed_in("admin"), number)
        with desk.node.core.database.begin() as tx:
            tx.execute(sa.update(approval).where(approval.c.id == number).values(**{name: row[name] for name in change}))
    before = {"decision": "approved", "outcome": "done", "done_at": desk.at[0], "decided_by": desk.signed_in("ben").principal_id}
    with desk.node.core.database.begin() as tx:
        tx.execute(sa.update(approval).where(approval.c.id == number).values(**before))


def test_an_edited_request_is_found_and_carries_nothing_out(desk: Desk, tmp_path: Path) -> None:
    core, ben = desk.node.core, desk.signed_in("ben")
    slot = {"key_file": tmp_path / "second.key", "label": "forged"}
    waits = desk.asks(lambda: desk.node.keys.slot_add(desk.console, **slot))
    refused = desk.asks(lambda: desk.accounts.add_role(desk.signed_in("ann"), "other", ["user-manage"]))
    desk.approvals.refuse(ben, refused)
    done = desk.asks(lambda: desk.accounts.add_role(desk.signed_in("ann"), "third", ["user-manage"]))
    desk.approvals.approve(ben, done)
    at, which = desk.at[0], approval.c.id
    edits = [
        sa.update(approval).where(which == waits).values(decision="approved", decided_by=ben.principal_id, decided_at=at),
        sa.update(approval).where(which == waits).values(expires_at=at + timedelta(days=9)),
        sa.update(approval).where(which == refused).values(decision=""),
        sa.update(approval).where(which == done).values(decided_by=1),
        sa.update(approval).where(which == done).values(done_at=None, outcome=""),
        sa.update(approval).where(which == done).values(reason="because"),
        sa.update(approval).where(which == waits).values(id=77),
        sa.delete(approval).where(which == waits),
    ]
    for edit in edits:
        with suppress(_Undone), core.database.begin() as tx:
            assert list(approved(core, tx)) == []
            assert tx.execute(edit).rowcount == 1
            assert {code for code, _, _ in approved(core, tx)} == {"V12"}, str(edit)
            raise _Undone
    with core.database.begin() as tx:
        tx.execute(edits[0])
    desk.asks(lambda: desk.node.keys.slot_add(desk.console, **slot))  # no event says that anybody agreed
    assert not slot["key_file"].exists()
    with core.database.begin() as tx:
        tx.execute(sa.update(approval).where(which == waits).values(decision="", decided_by=None, decided_at=None))


class _Undone(Exception):  # not an error
    pass


def test_what_is_asked_and_what_was_done_verifies(desk: Desk) -> None:
    found = [one for one in desk.node.verify.run(desk.console, "quick").findings if one.code == "V12"]
    assert found == []
    with desk.node.core.database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).where(audit_event.c.kind == "approval")).scalar_one() > 20


def test_off_nothing_waits(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        node.accounts.add_role(console, "mine", ["user-manage"])
        node.accounts.change_role(console, "mine", add=["stats"])
        assert node.approvals.listed(console, every=True) == []
        assert not node.approvals.in_force


def test_what_is_asked_twice_at_once_waits_once(tmp_path: Path, engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    met, keep = threading.Barrier(2), two_person._keep

    def slowly(*args: Any) -> int:
        with suppress(threading.BrokenBarrierError):
            met.wait(1)  # for whoever asks besides and has found nothing that waits
        return keep(*args)

    monkeypatch.setattr(two_person, "_keep", slowly)
    config = archives.made(tmp_path, policy={"two_person": True}, **engine)
    with archives.opened(config) as node, ThreadPoolExecutor(2) as pool:
        console, wish = archives.the_console(node), two_person.Wish("policy", "a change", Permission.CONFIGURE, {"file": "x"})

        def asks() -> int:
            return two_person.ask(two_person.Room.of(node.core), console, wish, at=node.core.clock()).approval

        first, second = (pool.submit(asks) for _ in range(2))
        assert first.result() == second.result()
        assert len(node.approvals.listed(console)) == 1
