"""The threat catalogue: what an insider does to the storage, what `archive verify` then says, and what becomes of reads.

docs/tamper.md shows the same table; a test compares the two.
"""

# ruff: noqa: E501, ERA001 # a table: one tampering a line, under headings

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from archive.keys.entries import SigningPurpose
from archive.keys.keyring import Keyring
from tests.tamper import world
from tests.tamper.world import Sql, World

Act = Callable[[World], None]


@dataclass(frozen=True)
class Tamper:
    """One tampering: its name in the document, how it is done, what is said of it by which level, and what reading does."""

    name: str
    act: Act
    codes: str  # everything the level says, in order; empty: nothing, and `why` says why not
    level: str  # the first of quick, standard and full that says it; start: the archive serves read-only besides
    reads: str  # refused: errors, besides right bytes; right: right bytes; fewer: right bytes of fewer instances
    why: str = ""


def sql(*statements: str, keystore: bool = False) -> Act:
    """Run statements with the database's own key."""

    def act(made: World) -> None:
        assert world.run(made.config, Sql(statements, keystore)), "the statement changed nothing"

    return act


def _segment(made: World) -> Path:
    return max(made.config.segments_dir.iterdir(), key=lambda path: path.stat().st_size)


def _file(change: Callable[[Path], object], pick: Callable[[World], Path] = _segment) -> Act:
    return lambda made: (change(pick(made)), None)[1]


def _extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)


def _inject(path: Path) -> None:
    shutil.copy(path, path.with_name("ab" * 16 + ".seg"))


def flip(path: Path, at: int) -> None:
    """Change one bit."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x20]))


def _checkpoint(made: World) -> Path:
    return made.config.ledger_dir / "checkpoint"


def _witnessed(made: World) -> Path:
    return made.config.ledger_dir / "witness" / "nas"


def _tile(kind: str) -> Callable[[World], Path]:
    return lambda made: next(path for path in sorted((made.config.ledger_dir / kind).rglob("*")) if path.is_file())


# --- rolling back: a copy of some of it is kept, the archive works on, the copy comes back -----------------------------------------

PARTS = {
    "index": lambda made: [made.config.index_path],
    "keystore": lambda made: [made.config.keystore_path],
    "ledger": lambda made: [made.config.ledger_dir],
    "segments": lambda made: [made.config.segments_dir],
}


def rolled_back(*parts: str) -> Act:
    """Let yesterday's copy of these parts come back after another study was stored."""

    def act(made: World) -> None:
        from tests.services import archives

        kept = made.folder / "yesterday"
        paths = [path for part in parts for path in PARTS[part](made)]
        for path in paths:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, kept / path.name if path.is_dir() else _made(kept) / path.name)
        with archives.opened(made.config) as node:
            data = archives.instance(1, study=world.LATER, PatientID="P9")
            assert archives.store(node, data).status == "stored"
            made.given[f"{world.LATER}.1.1"] = data
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
                shutil.copytree(kept / path.name, path)
            else:
                for old in path.parent.glob(f"{path.name}*"):
                    old.unlink()
                shutil.copy(kept / path.name, path)

    return act


def older_keyring(*parts: str) -> Act:
    """Let yesterday's keyring, and of these parts what was beside it, come back after a slot was removed and the archive started."""

    def act(made: World) -> None:
        from tests.services import archives

        paths = [made.config.keys_dir / "keyring.json", *(path for part in parts for path in PARTS[part](made))]
        with archives.opened(made.config) as node:
            slot = node.keys.slot_add(archives.the_console(node), key_file=made.folder / "lent.key")
        kept = [(path, shutil.copy(path, _made(made.folder / "yesterday") / path.name)) for path in paths]
        with archives.opened(made.config) as node:
            node.keys.slot_remove(archives.the_console(node), slot)
        with archives.opened(made.config):
            pass
        for path, copy in kept:
            for beside in path.parent.glob(f"{path.name}-*"):
                beside.unlink()
            shutil.copy(copy, path)

    return act


def _unannounced(*purposes: SigningPurpose) -> Act:
    """Put other keys into the keyring, by whoever has what opens it, without an event."""

    def act(made: World) -> None:
        ring, at = Keyring.open(made.config), datetime.now(UTC)
        ring.prepare(purposes, at=at)
        ring.activate(purposes)
        ring.retire(purposes, at=at)

    return act


def _bodiless(kind: str, body: bytes = b"", more: tuple[str, ...] = ()) -> Act:
    """Put another body, or none, in the place of that of the last event of a kind, in the index and in the file beside the ledger."""

    def act(made: World) -> None:
        row = f"n = (SELECT max(n) FROM audit_event WHERE kind = '{kind}')"
        old = made.folder / "old-body"
        world.run(made.config, Sql((f"ATTACH '{old}' AS aside KEY ''", f"CREATE TABLE aside.one AS SELECT body FROM audit_event WHERE {row}")))
        with closing(sqlite3.connect(old)) as connection:
            [(sealed,)] = connection.execute("SELECT body FROM one").fetchall()
        value = f"x'{body.hex()}'" if body else "NULL"
        assert world.run(made.config, Sql((f"UPDATE audit_event SET body = {value} WHERE {row}", *more)))
        found = 0
        for path in sorted(one for one in (made.config.ledger_dir / "bodies").rglob("*") if one.is_file()):
            data = path.read_bytes()
            found += data.count(sealed)
            path.write_bytes(data.replace(len(sealed).to_bytes(4, "big") + sealed, len(body).to_bytes(4, "big") + body))
        assert found == 1

    return act


def _announced(*statements: str) -> Act:
    """Replace the signing key as it is done, then run statements; `{n}` is the event that announced it."""

    def act(made: World) -> None:
        from tests.services import archives

        with archives.opened(made.config) as node:
            n = node.keys.replace(archives.the_console(node), "signing")["event"]
        sql(*(one.format(n=n) for one in statements))(made)

    return act


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _swapped(one: str, other: str) -> Act:
    columns = ("key_id", "segment_id", "record_offset", "record_bytes", "plaintext_bytes", "part10_bytes", "dataset_offset", "sha256", "leaf")
    at = " ".join(f"WHEN '{a}' THEN (SELECT {{0}} FROM was WHERE sop_instance_uid = '{b}')" for a, b in ((one, other), (other, one)))
    sets = ", ".join(f"{name} = CASE sop_instance_uid {at.format(name)} END" for name in columns)
    pair = f"('{one}', '{other}')"
    return sql(
        "CREATE TEMP TABLE was AS SELECT * FROM instance",
        f"UPDATE instance SET object_id = randomblob(16) WHERE sop_instance_uid IN {pair}",
        f"UPDATE instance SET {sets}, object_id = CASE sop_instance_uid {at.format('object_id')} END WHERE sop_instance_uid IN {pair}",
    )


def _cache(made: World) -> list[Path]:
    return sorted(path for path in made.config.cache_dir.rglob("*") if path.is_file())


def _cached(change: Callable[[Path], object]) -> Act:
    def act(made: World) -> None:
        assert _cache(made)
        for path in _cache(made):
            change(path)

    return act


def _cached_swapped(made: World) -> None:
    paths = _cache(made)
    kept = [path.read_bytes() for path in paths]
    assert len(set(kept)) > 1
    for path, data in zip(paths, kept[1:] + kept[:1], strict=True):
        path.write_bytes(data)


_EVE = "(SELECT id FROM principal WHERE name = 'eve')"
_ALL = "not_before, not_after, created_at"
_GRANT = (
    "datastore_id, effect, hard, role_id, permissions, scope_key, modality, study_date_from, study_date_to, not_before, not_after, "
    "need_context, kind, depth_left, reason, created_at"
)
_ADMIN = "(SELECT id FROM principal WHERE name = 'admin')"

TAMPERS = (
    # storage
    Tamper("a segment's file is removed", _file(Path.unlink), "V01", "quick", "refused"),
    Tamper("a segment's file is emptied", _file(lambda path: path.write_bytes(b"")), "V02", "quick", "refused"),
    Tamper("a segment's file is cut by a block", _file(_cut), "V02", "quick", "right"),
    Tamper("a segment's file is extended", _file(_extend), "V02", "quick", "right"),
    Tamper("a segment's file is moved to another name", _file(lambda path: path.rename(path.with_name("cd" * 16 + ".seg"))), "V01 V15", "quick",
           "refused"),
    Tamper("a copy of a segment lies beside it", _file(_inject), "V15", "quick", "right"),
    # index: images
    Tamper("two instances of a series trade records", _swapped("1.2.3.1.1", "1.2.3.1.2"), "V10", "standard", "refused"),
    Tamper("instances of two patients trade records", _swapped("1.2.3.1.1", "1.2.4.1.1"), "V10", "standard", "refused"),
    Tamper("a series is put into another patient's study", sql(
        "UPDATE series SET study_pk = (SELECT id FROM study WHERE study_instance_uid = '1.2.4'), patient_pk = "
        "(SELECT id FROM patient WHERE patient_id = 'P2') WHERE series_instance_uid = '1.2.3.2'",
        "UPDATE instance SET study_pk = (SELECT id FROM study WHERE study_instance_uid = '1.2.4') WHERE sop_instance_uid = '1.2.3.2.1'",
    ), "V10", "quick", "refused"),
    Tamper("a study is given to another patient", sql(
        "UPDATE series SET patient_pk = (SELECT id FROM patient WHERE patient_id = 'P2') WHERE study_pk = "
        "(SELECT id FROM study WHERE study_instance_uid = '1.2.3')",
        "UPDATE study SET patient_pk = (SELECT id FROM patient WHERE patient_id = 'P2') WHERE study_instance_uid = '1.2.3'",
    ), "V10", "standard", "right"),
    Tamper("an instance's row is removed", sql("DELETE FROM instance WHERE sop_instance_uid = '1.2.3.1.1'"), "V10 V12", "quick", "fewer"),
    Tamper("a series' row is removed", sql("DELETE FROM series WHERE series_instance_uid = '1.2.3.2'"), "V10", "quick", "fewer"),
    Tamper("a study's row is removed", sql("DELETE FROM study WHERE study_instance_uid = '1.2.4'"), "V10 V12", "quick", "fewer"),
    Tamper("a rejected instance is brought back with its counts", sql(
        "UPDATE instance SET rejected_at = NULL WHERE sop_instance_uid = '1.2.3.1.4'",
        "UPDATE series SET n_instances = n_instances + 1 WHERE series_instance_uid = '1.2.3.1'",
        "UPDATE study SET n_instances = n_instances + 1 WHERE study_instance_uid = '1.2.3'",
    ), "V12", "quick", "more"),
    Tamper("an instance is hidden with its counts", sql(
        "UPDATE instance SET rejected_at = 1 WHERE sop_instance_uid = '1.2.3.1.1'",
        "UPDATE series SET n_instances = n_instances - 1 WHERE series_instance_uid = '1.2.3.1'",
        "UPDATE study SET n_instances = n_instances - 1 WHERE study_instance_uid = '1.2.3'",
    ), "V12", "quick", "fewer"),
    Tamper("a decided instance waits again", sql("UPDATE held SET state = 'open' WHERE state = 'accepted'"), "V12", "quick", "right"),
    Tamper("what waits is removed", sql("DELETE FROM held WHERE state = 'open'"), "V12", "quick", "right"),
    Tamper("a rejected one that waited is removed", sql("DELETE FROM held WHERE sop_instance_uid = '1.2.3.1.6'"), "V12", "quick", "right"),
    Tamper("a statement is removed", sql("DELETE FROM statement WHERE leaf = (SELECT leaf FROM instance WHERE sop_instance_uid = '1.2.3.1.1')"),
           "V10 V11", "standard", "right"),
    Tamper("a segment's row is removed", sql("DELETE FROM segment"), "V15", "quick", "right"),
    Tamper("a cached file is changed", _cached(lambda path: flip(path, 300)), "", "", "right", "a cache: it is not served, but made again"),
    Tamper("cached files trade places", _cached_swapped, "", "", "right", "a cache: it is not served, but made again"),
    Tamper("a series' metadata is that of another series", sql(
        "CREATE TEMP TABLE was AS SELECT * FROM series_pack",
        "UPDATE series_pack SET object_id = (SELECT object_id FROM was WHERE series_pk <> series_pack.series_pk LIMIT 1)",
    ), "", "", "right", "it is not served, but made again"),
    # index: access
    Tamper("a user is added", sql(
        "INSERT INTO principal (kind, name, enabled, created_at, security_epoch) VALUES ('user', 'mallory', 1, 1, 0)"), "V12", "quick", "right"),
    Tamper("a second console is added", sql(
        "INSERT INTO principal (kind, name, enabled, created_at, security_epoch) VALUES ('console', 'tty', 1, 1, 0)"), "V12", "quick", "right"),
    Tamper("a user is removed", sql("DELETE FROM principal WHERE name = 'eve'"), "V12", "quick", "right"),
    Tamper("a disabled user is enabled", sql("UPDATE principal SET enabled = 1, disabled_at = NULL WHERE name = 'carol'"), "V12", "quick", "right"),
    Tamper("a role is assigned", sql(
        f"INSERT INTO role_assignment (principal_id, role_id, {_ALL}) SELECT {_EVE}, id, 1, 253402214400000000, 1 FROM role WHERE name = 'owner'"
    ), "V12", "quick", "right"),
    Tamper("a withdrawn role is given back", sql("UPDATE role_assignment SET revoked_at = NULL WHERE revoked_at IS NOT NULL"), "V12", "quick",
           "right"),
    Tamper("a role is taken away", sql(f"DELETE FROM role_assignment WHERE principal_id = {_EVE}"), "V12", "quick", "right"),
    Tamper("a role is widened", sql("UPDATE role SET permissions = 2147483647 WHERE name = 'reader'"), "V12", "quick", "right"),
    Tamper("a role is added", sql("INSERT INTO role (name, permissions, builtin, created_at) VALUES ('root', 2147483647, 1, 1)"), "V12", "quick",
           "right"),
    Tamper("a membership is added", sql(
        f"INSERT INTO membership (principal_id, group_id, not_before, not_after) SELECT {_EVE}, id, 1, 253402214400000000 FROM principal "
        "WHERE name = 'ward'"), "V12", "quick", "right"),
    Tamper("a membership that denies is removed", sql(f"DELETE FROM membership WHERE principal_id = {_EVE}"), "V12", "quick", "right"),
    Tamper("a grant is added", sql(
        f"INSERT INTO grants (subject_id, {_GRANT}) SELECT {_EVE}, {_GRANT} FROM grants WHERE subject_id = {_ADMIN}"), "V12", "quick", "right"),
    Tamper("a revoked grant counts again", sql("UPDATE grants SET revoked_at = NULL WHERE revoked_at IS NOT NULL"), "V12", "quick", "right"),
    Tamper("a deny is ended", sql("UPDATE grants SET revoked_at = 1 WHERE effect = 0"), "V12", "quick", "right"),
    Tamper("a deny is removed", sql("DELETE FROM grants WHERE effect = 0"), "V12", "quick", "right"),
    Tamper("the owner's grant is removed", sql(f"DELETE FROM grants WHERE subject_id = {_ADMIN}"), "V12", "quick", "fewer"),
    Tamper("what leads a search to a study is removed", sql("DELETE FROM access_study"), "V10", "quick", "right"),
    Tamper("a search is led to a study under another date", sql("UPDATE access_study SET study_date = '19000101'"), "V10", "quick", "right"),
    Tamper("a search is led to a study for nobody's grant", sql(
        "INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk) "
        f"SELECT {_ADMIN}, datastore_id, study_date, study_time, id FROM study"), "V10", "quick", "right"),
    Tamper("a token is added", sql(
        "INSERT INTO api_token (prefix, secret_hmac, principal_id, permissions, created_at, not_after) "
        f"VALUES ('AAAAAAAA', randomblob(32), {_ADMIN}, 2147483647, 1, 253402214400000000)"), "V12", "quick", "right"),
    Tamper("a revoked token counts again", sql("UPDATE api_token SET revoked_at = NULL WHERE revoked_at IS NOT NULL"), "V12", "quick", "right"),
    Tamper("a token's bounds are removed", sql("UPDATE api_token SET boundary_id = NULL"), "V12", "quick", "right"),
    Tamper("a token no longer stands on the one it was made with", sql(
        "UPDATE api_token SET parent_id = NULL WHERE parent_id IS NOT NULL"), "V12", "quick", "right"),
    Tamper("a token's bounds are widened", sql(
        "INSERT INTO boundary_item (boundary_id, permissions, scope_key) SELECT boundary_id, permissions, 0 FROM boundary_item"), "V12", "quick",
        "right"),
    Tamper("a session is added", sql(
        "INSERT INTO session (token_sha256, principal_id, epoch, created_at, last_seen_at, idle_until, absolute_until) "
        f"VALUES (randomblob(32), {_ADMIN}, 0, 1, 1, 253402214400000000, 253402214400000000)"), "V12", "quick", "right"),
    Tamper("a session lasts longer", sql("UPDATE session SET absolute_until = absolute_until + 86400000000 WHERE revoked_at IS NULL"), "V12", "quick",
           "right"),
    Tamper("a session that ended goes on", sql("UPDATE session SET revoked_at = NULL WHERE revoked_at IS NOT NULL"), "V12", "quick", "right"),
    Tamper("a password is replaced by another user's", sql(
        f"UPDATE credential SET data = (SELECT data FROM credential WHERE principal_id = {_EVE}) WHERE principal_id = {_ADMIN}"), "V12", "quick",
        "right"),
    Tamper("a session is said to be of a moment ago", sql("UPDATE session SET authn_at = authn_at + 600000000 WHERE revoked_at IS NULL"), "V12",
           "quick", "right"),
    Tamper("a second factor is removed", sql("DELETE FROM factor"), "V12", "quick", "right"),
    Tamper("a second factor counts for another user", sql(f"UPDATE factor SET principal_id = {_EVE}"), "V12", "quick", "right"),
    Tamper("a used recovery code counts again", sql("UPDATE recovery_code SET used_at = NULL WHERE used_at IS NOT NULL"), "V12", "quick", "right"),
    Tamper("somebody elsewhere becomes another user", sql(f"UPDATE external_identity SET principal_id = {_ADMIN}"), "V12", "quick", "right"),
    Tamper("somebody elsewhere becomes a user", sql(
        f"INSERT INTO external_identity (principal_id, issuer, subject, bound_at) VALUES ({_ADMIN}, 'https://idp', 'eve', 1)"), "V12", "quick", "right"),
    Tamper("a role asks for no second factor", sql("UPDATE role SET mfa_level = 1 - mfa_level WHERE name = 'auditor'"), "V12", "quick", "right"),
    Tamper("a password is removed", sql(f"DELETE FROM credential WHERE principal_id = {_EVE}"), "V12", "quick", "right"),
    Tamper("a peer is bound to another certificate", sql("UPDATE peer SET certificate_sha256 = randomblob(32), tls = 1 WHERE name = 'CT1'"), "V12",
           "quick", "right"),
    Tamper("a removed peer comes back", sql("UPDATE peer SET enabled = 1 WHERE name <> 'CT1'"), "V12", "quick", "right"),
    Tamper("a peer's network is widened", sql("INSERT INTO peer_network (peer_id, network) SELECT id, '0.0.0.0/0' FROM peer WHERE name = 'CT1'"),
           "V12", "quick", "right"),
    Tamper("a peer's AE title is added", sql("INSERT INTO peer_ae_title (peer_id, ae_title) SELECT id, 'EVIL' FROM peer WHERE name = 'CT1'"), "V12",
           "quick", "right"),
    Tamper("a peer is removed", sql("DELETE FROM peer WHERE name = 'CT1'"), "V12", "quick", "right"),
    # keystore
    Tamper("the wrapped keys of two studies are swapped", sql(
        "CREATE TEMP TABLE was AS SELECT * FROM data_key",
        "UPDATE data_key SET wrapped = (SELECT w.wrapped FROM was w WHERE w.key_id <> data_key.key_id ORDER BY w.key_id LIMIT 1)",
        keystore=True), "V05", "quick", "refused"),
    Tamper("a study's key is removed", sql("DELETE FROM data_key WHERE key_id = (SELECT key_id FROM data_key ORDER BY rowid LIMIT 1)", keystore=True), "V05", "quick",
           "refused"),
    Tamper("the key of what was deleted and decided is removed", sql(  # the fourth key there was: nothing is deleted before it is stored
        "DELETE FROM data_key WHERE rowid = (SELECT rowid FROM data_key ORDER BY rowid LIMIT 1 OFFSET 3)", keystore=True), "V05", "quick",
        "right"),
    Tamper("the key of what was deleted and decided is said to be shredded", sql(
        "UPDATE data_key SET state = 'shredded' WHERE rowid = (SELECT rowid FROM data_key ORDER BY rowid LIMIT 1 OFFSET 3)", keystore=True),
        "V05", "quick", "right"),
    Tamper("all keys are removed", sql("DELETE FROM data_key", keystore=True), "V05", "quick", "refused"),
    Tamper("a key is said to be shredded", sql("UPDATE data_key SET state = 'shredded'", keystore=True), "V05", "quick", "refused"),
    Tamper("the keystore's anchor is removed", sql("DELETE FROM anchor WHERE name = 'checkpoint'", keystore=True), "V14", "quick", "right"),
    Tamper("the keystore's anchor is forged", sql("UPDATE anchor SET note = CAST(replace(CAST(note AS TEXT), 'strongroom/', 'strongroon/') AS BLOB) "
           "WHERE name = 'checkpoint'", keystore=True), "V14", "start", "right"),
    # keys that follow one another
    Tamper("a signing key is put in that was not announced", _unannounced("instance"), "V13", "quick", "right"),
    Tamper("checkpoint keys are put in that were not announced", _unannounced("log", "log-pq"), "V13", "quick", "right"),
    Tamper("the announcement of a key is made another event", _announced("UPDATE audit_event SET kind = 'key-used' WHERE n = {n}"), "V12 V13",
           "quick", "right"),
    Tamper("the announcement of a key is that of another event", _announced(
        "UPDATE audit_event SET body = (SELECT o.body FROM audit_event o WHERE o.n = 3) WHERE n = {n}"), "V12 V13", "quick", "right"),
    # witnesses
    Tamper("what a witness agreed to is forged", sql("UPDATE witness_cosignature SET root = zeroblob(32)"), "V14", "quick", "right"),
    Tamper("another witness's key is put in", sql("UPDATE witness SET verifier_key = 'nas+00000000+BAAA'"), "V14", "quick", "right"),
    Tamper("a witness's cosignature is removed", sql("DELETE FROM witness_cosignature"), "", "", "right",
           "the note beside the ledger says the same, and the witness itself remembers"),
    Tamper("the checkpoint kept of a witness is removed", _file(Path.unlink, _witnessed), "", "", "right",
           "the cosignature in the index says the same, and the witness itself remembers"),
    Tamper("the checkpoint kept of a witness is changed", _file(lambda path: flip(path, 60), _witnessed), "V14", "start", "right"),
    # ledger
    Tamper("a leaf is rewritten with its hash", sql(
        "UPDATE ledger_leaf SET (data, hash) = (SELECT o.data, o.hash FROM ledger_leaf o WHERE o.n = 4) WHERE n = 3"), "V11 V13", "quick",
        "right"),
    Tamper("two leaves trade places", sql(
        "UPDATE ledger_leaf SET n = -1 WHERE n = 3", "UPDATE ledger_leaf SET n = 3 WHERE n = 4", "UPDATE ledger_leaf SET n = 4 WHERE n = -1"),
        "V11 V13", "quick", "right"),
    Tamper("a leaf is removed", sql("DELETE FROM ledger_leaf WHERE n = 3"), "V11 V13", "quick", "right"),
    Tamper("the last leaves are removed", sql(
        "DELETE FROM ledger_leaf WHERE n > (SELECT max(size) - 3 FROM checkpoint)", "DELETE FROM audit_event WHERE n > (SELECT max(n) FROM ledger_leaf)",
    ), "V03 V13 V14", "start", "right"),
    Tamper("the last leaves and checkpoints are removed", sql(
        "DELETE FROM ledger_leaf WHERE n > (SELECT max(size) - 3 FROM checkpoint)", "DELETE FROM audit_event WHERE n > (SELECT max(n) FROM ledger_leaf)",
        "DELETE FROM checkpoint WHERE size > (SELECT max(n) + 1 FROM ledger_leaf)",
    ), "V03 V13 V14", "start", "right"),
    Tamper("an event's body is removed", sql("UPDATE audit_event SET body = zeroblob(64) WHERE n = 3"), "V12 V13", "quick", "right"),
    Tamper("an event's body is taken out, of its file too", _bodiless("read"), "V12", "quick", "right"),
    Tamper("an event's body is sealed under a key that never was, in its file too", _bodiless("read", b"\x01" + bytes(80)), "V12", "quick", "right"),
    Tamper("a revoked grant counts again, the body of what ended it is taken out, of its file too", _bodiless(
        "revoked", more=("UPDATE grants SET revoked_at = NULL",)), "V12", "quick", "right"),
    Tamper("the bodies of two events trade places", sql(
        "CREATE TEMP TABLE was AS SELECT n, body FROM audit_event",
        "UPDATE audit_event SET body = (SELECT body FROM was WHERE was.n = 9 - audit_event.n) WHERE n IN (4, 5)"), "V12 V13", "quick", "right"),
    Tamper("an audit record is removed", sql("DELETE FROM audit_event WHERE n = 3"), "V12 V13", "quick", "right"),
    Tamper("the patients of an event are removed", sql("DELETE FROM audit_object WHERE n = (SELECT min(n) FROM audit_object)"), "V12", "quick", "right"),
    Tamper("a node of the tree is removed", sql("DELETE FROM ledger_node WHERE level = 2 AND position = 0"), "V13", "quick", "right"),
    Tamper("all nodes of the tree are removed", sql("DELETE FROM ledger_node"), "V13", "quick", "right"),
    Tamper("a checkpoint's root is forged", sql("UPDATE checkpoint SET root = randomblob(32)"), "V13", "quick", "right"),
    Tamper("a checkpoint is signed by another", sql(
        "UPDATE checkpoint SET note = CAST(replace(CAST(note AS TEXT), 'strongroom/', 'strongroon/') AS BLOB)"), "V13", "quick", "right"),
    Tamper("the checkpoint file is forged", _file(lambda path: flip(path, 3), _checkpoint), "V14", "start", "right"),
    Tamper("the checkpoint file is removed", _file(Path.unlink, _checkpoint), "V13 V14", "quick", "right"),
    Tamper("a tile is changed", _file(lambda path: flip(path, 10), _tile("tile/0")), "V13", "quick", "right"),
    Tamper("a tile of entries is changed", _file(lambda path: flip(path, 40), _tile("tile/entries")), "V13", "quick", "right"),
    Tamper("a tile is removed", _file(Path.unlink, _tile("tile/0")), "V13", "quick", "right"),
    Tamper("a file of sealed bodies is changed", _file(lambda path: flip(path, 40), _tile("bodies")), "V13", "quick", "right"),
    # rolled back
    Tamper("the index is rolled back", rolled_back("index"), "V13 V14 V15", "start", "fewer"),
    Tamper("the index and the ledger's folder are rolled back", rolled_back("index", "ledger"), "V14 V15", "start", "fewer"),
    Tamper("the index and the keystore are rolled back", rolled_back("index", "keystore"), "V13 V14 V15", "start", "fewer"),
    Tamper("the keystore is rolled back", rolled_back("keystore"), "V05", "quick", "refused"),
    Tamper("the ledger's folder is rolled back", rolled_back("ledger"), "", "", "right", "nothing is lost: the database has it all, and the files are made again"),
    Tamper("the ledger's folder and the keystore are rolled back", rolled_back("ledger", "keystore"), "V05", "quick", "refused"),
    Tamper("the segments are rolled back", rolled_back("segments"), "V01", "quick", "refused"),
    Tamper("the index, the keystore and the ledger's folder are rolled back", rolled_back("index", "keystore", "ledger"), "V15", "quick", "fewer",
           "the records of what came later stay, without a key"),
    Tamper("the keyring is rolled back", older_keyring(), "V14", "start", "right"),
    Tamper("the keyring and the keystore are rolled back", older_keyring("keystore"), "V14", "start", "right"),
    Tamper("everything is rolled back", rolled_back("index", "keystore", "ledger", "segments"), "", "", "fewer",
           "only who kept a checkpoint outside can tell: a witness does, at the start"),
)
