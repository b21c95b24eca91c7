"""A small archive with something of everything, made once and copied for each tampering; and the insider who holds the index's key."""

from __future__ import annotations

import base64
import gzip
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlcipher3.dbapi2 as sqlcipher

from archive.access import totp
from archive.access.grants import Target
from archive.config import Config
from archive.db import pages
from archive.dicom.recipe import thumbnail
from archive.errors import ArchiveError, NotFound
from archive.keys.keyring import Keyring
from archive.node import Node, open_node
from archive.services.retrieve import Found
from archive.services.signin import SecondAsked, SignedIn
from archive.services.verify import Mode
from tests.services import archives, witnessing

ONE, TWO, BIG = "1.2.3", "1.2.4", "1.2.5"
STUDIES = (ONE, TWO, BIG)
LATER = "1.2.9"
HIDDEN = f"{ONE}.1.4"
ALL = bool(os.environ.get("ARCHIVE_TEST_TAMPER_ALL"))
MODES: tuple[Mode, ...] = ("quick", "standard", "full", "keyless")


@dataclass(frozen=True)
class World:
    """Where the archive lies, and what it was given, by SOP Instance UID; `hidden` was rejected."""

    folder: Path
    given: dict[str, bytes]
    hidden: dict[str, bytes]
    metadata: dict[str, bytes]  # of each study
    pictures: dict[str, bytes]  # of each instance

    @property
    def config(self) -> Config:
        return archives.configured(self.folder)

    def copy(self, folder: Path) -> World:
        """The same archive elsewhere: every tampering has one of its own."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return World(folder, dict(self.given), self.hidden, self.metadata, self.pictures)


def build(folder: Path) -> World:
    """Three studies of three patients, held ones and conflicts, decided and not, users, groups, grants, tokens, peers and sessions."""
    config = archives.made(folder)
    Path(config.path).write_text("", encoding="utf-8")  # what the start says of the configuration is a row too
    given: dict[str, bytes] = {}
    with archives.opened(config) as node:
        console = archives.the_console(node)

        def store(number: int, status: str = "stored", **options: Any) -> None:
            data = archives.instance(number, **options)
            assert archives.store(node, data).status == status
            if status == "stored":
                given[f"{options.get('series') or options['study'] + '.1'}.{number}"] = data

        for number in (1, 2, 3):
            store(number, study=ONE)
        store(1, study=ONE, series=f"{ONE}.2", Modality="MR")
        for number in (1, 2):
            store(number, study=TWO, PatientID="P2", PatientName="Second^Person")
        store(1, study=BIG, PatientID="P3", rows=420)
        store(4, study=ONE)
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.4", reason="sent twice")
        store(5, study=ONE)
        node.remove.reject(console, "clinical", "instance", f"{ONE}.1.5", reason="by mistake")
        node.remove.restore(console, "clinical", "instance", f"{ONE}.1.5", reason="by mistake")
        store(6, "held", study=ONE, PatientID="OTHER")
        store(7, "held", study=ONE, PatientID="OTHER")
        store(2, "conflict", study=TWO, PatientID="P2", PatientName="Second^Person", StudyDescription="again")
        waiting = {row["sop_instance_uid"]: row["id"] for row in node.reconcile.list(console)}
        node.reconcile.reject(console, waiting[f"{ONE}.1.6"], reason="somebody else's")
        node.reconcile.accept(console, waiting[f"{TWO}.1.2"], reason="the better one")
        given[f"{TWO}.1.2"] = archives.instance(2, study=TWO, PatientID="P2", PatientName="Second^Person", StudyDescription="again")
        _people(node)
        node.upkeep.tick()
        metadata, pictures = {uid: told(node, uid) for uid in STUDIES}, every_picture(node)
        for _ in range(4):
            node.upkeep._hash_segments()
    with archives.opened(config) as node:
        for _ in range(4):
            node.upkeep._hash_segments()
        node.upkeep.checkpoint()
        witnessing.agree(node, folder / "outside")
    return World(folder, given, {HIDDEN: given.pop(HIDDEN)}, metadata, pictures)


def _people(node: Node) -> None:
    console, a = archives.the_console(node), node.accounts
    for name in ("bob", "carol", "eve"):
        a.add_user(console, name, password=archives.PASSWORD, roles=["technologist"])
    a.disable_user(console, "carol")
    a.withdraw_role(console, "bob", "technologist")
    a.assign_role(console, "eve", "auditor", until="30d")
    a.add_group(console, "ward")
    a.add_group(console, "closed")
    a.join_group(console, "ward", "bob", until="30d")
    a.join_group(console, "closed", "eve")
    a.join_group(console, "ward", "carol")
    a.leave_group(console, "ward", "carol")
    a.add_role(console, "reader", ["search", "metadata"])
    a.add_grant(console, to="ward", role="referrer", target=Target("study", ONE), until="8h")
    a.add_grant(console, to="closed", role="referrer", target=Target("study", TWO), deny=True)
    gone = a.add_grant(console, to="eve", role="referrer", target=Target("everything"))
    a.revoke_grant(console, gone["id"])
    kept = a.create_token(console, owner="admin", studies=[ONE], until="1d")
    ended = a.create_token(console, owner="admin")
    assert kept["id"] != ended["id"]
    a.revoke_token(console, ended["id"])
    a.create_token(console, owner="admin", parent=kept["id"])
    node.peers.add(console, "CT1", ["CT1"], networks=["127.0.0.1/32"])
    node.peers.add(console, "CT2", ["CT2"], networks=["127.0.0.2/32"])
    node.peers.remove(console, "CT2")
    _second_factors(node)
    node.identities.bind(console, "bob", issuer="https://idp.example", external_subject="bob-elsewhere")
    gone = node.identities.bind(console, "bob", issuer="https://idp.example", external_subject="bob-before")
    node.identities.unbind(console, gone["id"])
    node.signin.password("admin", archives.PASSWORD, address="127.0.0.1", user_agent="test")
    node.signin.sign_out(node.signin.password("admin", archives.PASSWORD, address="127.0.0.1", user_agent="test").subject)


def _second_factors(node: Node) -> None:
    """Bob has an authenticator app, and used one of his recovery codes."""
    desk = {"address": "127.0.0.1", "user_agent": "test"}
    first = node.signin.password("bob", archives.PASSWORD, **desk)
    assert isinstance(first, SignedIn)
    begun = node.factors.begin_totp(first.subject)
    code = totp.code(base64.b32decode(begun.secret.replace(" ", "")), totp.step_of(datetime.now(UTC)))
    codes = node.factors.confirm_totp(first.subject, begun.id, code)
    half = node.signin.password("bob", archives.PASSWORD, **desk)
    assert isinstance(half, SecondAsked)
    node.signin.sign_out(node.signin.second(half.half, codes[0], **desk).subject)
    node.signin.sign_out(first.subject)


# --- the insider ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sql:
    """Statements an insider runs on the index, or the keystore, with its key."""

    statements: Sequence[str]
    keystore: bool = False


def run(config: Config, sql: Sql) -> int:
    """Run statements with the file's own key, no constraint in the way; return how many rows changed."""
    keyring = Keyring.open(config)
    path, key = (config.keystore_path, keyring.keystore_key) if sql.keystore else (config.index_path, keyring.index_key)
    with closing(sqlcipher.connect(str(path))) as connection:
        pages.of(path, key).unlock(connection, key)
        connection.execute("PRAGMA foreign_keys = OFF")
        before = connection.total_changes
        for text in sql.statements:
            connection.execute(text)
        connection.commit()
        return int(connection.total_changes - before)


# --- what is served, what is found ------------------------------------------------------------------------------------------------


@contextmanager
def opened(config: Config) -> Iterator[tuple[Node, str]]:
    """The archive as a server opens it, and why only reading is allowed."""
    node = open_node(config)
    try:
        why = node.start()
        if why and not node.core.read_only:
            node.close()
            node = open_node(config, read_only=why)
        yield node, why
    finally:
        node.close()


def told(node: Node, study: str) -> bytes:
    """The metadata of a study, as JSON."""
    answer = node.retrieve.metadata(archives.user(node), "clinical", study)
    return gzip.decompress(b"".join(bytes(view) for view in answer.gzip()))


def drawn(node: Node, found: Found) -> bytes:
    """The thumbnail of an instance."""
    uids = (found.study_instance_uid, found.series_instance_uid, found.sop_instance_uid)
    (picture,) = node.pictures.of_instance(archives.user(node), "clinical", *uids, [0], thumbnail())
    return picture.data()


def every_picture(node: Node) -> dict[str, bytes]:
    """The thumbnail of every instance."""
    admin = archives.user(node)
    return {
        one.sop_instance_uid: drawn(node, one) for study in STUDIES for one in node.retrieve.instances(admin, "clinical", study)
    }


def served(node: Node, made: World) -> tuple[int, int]:
    """Ask for everything the owner can see: each byte is the one that was given, or an error came. Return how many of either.

    A study that is not there is no error: whoever sees nothing is told the same.
    """
    admin, given = archives.user(node), made.given | made.hidden
    right = refused = 0
    for study in (*STUDIES, LATER):
        try:
            found = node.retrieve.instances(admin, "clinical", study)
        except NotFound:
            continue
        for one in found:
            try:
                data = b"".join(bytes(view) for view in node.retrieve.open(admin, one))
            except ArchiveError:
                refused += 1
                continue
            assert data == given[one.sop_instance_uid], "wrong bytes were served"
            uids = data[:16384]
            assert all(uid.encode() in uids for uid in (one.study_instance_uid, one.series_instance_uid, one.transfer_syntax_uid))
            right += 1
        for one in found:
            if one.sop_instance_uid in made.pictures:
                with suppress(ArchiveError):
                    assert drawn(node, one) == made.pictures[one.sop_instance_uid], "a wrong picture was served"
    return right, refused


def codes(node: Node, mode: Mode) -> set[str]:
    """What verify says."""
    return {finding.code for finding in node.verify.run(archives.the_console(node), mode).findings}
