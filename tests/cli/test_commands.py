"""Every command against a real archive, nothing serving: what it answers, and that it takes effect."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest

from archive.cli import main
from archive.cli.session import Session
from archive.services import demo

Run = Callable[..., Any]
PASSWORD = "seven boats on a lake"


class Failed(AssertionError):
    """A command did not end as expected."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised archive with one CT series of two instances."""
    path = tmp_path_factory.mktemp("cli")
    (path / "config.toml").write_text("[dimse.plain]\nenabled = false\n")
    (path / "password").write_text(PASSWORD + "\n")
    assert main.run(["--config", str(path / "config.toml"), "init", "--admin", "anna", "--admin-password-file", str(path / "password")],
                    Session()) == 0
    assert (path / "config.toml").read_text() == "[dimse.plain]\nenabled = false\n"
    files = path / "files"
    files.mkdir()
    for number, data in zip(range(3), demo.instances("7b0cf1a6-1c3e-4a31-8b7e-3d5f0d0a9c11"), strict=False):
        (files / f"{number}.dcm").write_bytes(data)
    (files / "2.dcm").rename(path / "later.dcm")
    return path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(status, *arguments)`: a command with --json that must end with that status; returns its answer."""

    def call(status: int, *arguments: str) -> Any:
        capsys.readouterr()
        found = main.run(["--config", str(folder / "config.toml"), "--json", *arguments], Session())
        shown = capsys.readouterr()
        if found != status:
            raise Failed(f"{arguments}: exit status {found}, {shown}")
        return json.loads(shown.out or shown.err.splitlines()[-1])

    return call


@pytest.fixture
def said(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command's answer for people."""

    def call(*arguments: str) -> str:
        capsys.readouterr()
        status = main.run(["--config", str(folder / "config.toml"), *arguments], Session())
        shown = capsys.readouterr()
        assert status == 0, shown
        return shown.out

    return call


@pytest.fixture(scope="module")
def stored(folder: Path) -> Any:
    """The imported series' first instance."""
    assert main.run(["--config", str(folder / "config.toml"), "import", str(folder / "files")], Session()) == 0
    return pydicom.dcmread(folder / "files" / "0.dcm", stop_before_pixels=True)


def test_users(run: Run, folder: Path) -> None:
    made = run(0, "user", "add", "mia", "--role", "referrer", "--password-file", str(folder / "password"))
    assert run(0, "user", "show", "mia")["id"] == made["id"]
    assert {one["name"] for one in run(0, "user", "list")} == {"anna", "mia"}
    assert run(0, "user", "disable", "mia")["enabled"] is False
    assert run(0, "user", "enable", str(made["id"]))["enabled"] is True
    assert run(0, "user", "reset-password", "mia")["password"]
    assert "password" not in run(0, "user", "reset-password", "mia", "--password-file", str(folder / "password"))
    assert run(2, "user", "add", "mia", "--password-file", str(folder / "password"))["error"] == "invalid-request"
    assert run(1, "user", "show", "nobody")["error"] == "not-found"
    run(0, "user", "add", "gone", "--password-file", str(folder / "password"))
    run(0, "user", "remove", "gone")
    assert "gone" not in {one["name"] for one in run(0, "user", "list")}


def test_who_a_user_is_elsewhere(run: Run, said: Callable[..., str], folder: Path) -> None:
    run(0, "user", "add", "ola", "--no-password")
    assert run(0, "user", "show", "ola")["password"] is False
    assert run(2, "user", "add", "both", "--no-password", "--password-file", str(folder / "password"))["error"] == "usage"
    made = run(0, "user", "bind", "ola", "--issuer", "https://login.example", "--subject", "o-1")
    assert run(2, "user", "bind", "ola", "--subject", "o-2")["error"] == "invalid-request"  # no issuer is configured
    assert [(one["user"], one["subject"]) for one in run(0, "user", "identities")] == [("ola", "o-1")]
    assert "ola signs in with https://login.example no more" in said("user", "unbind", str(made["id"]))
    assert run(1, "user", "unbind", str(made["id"]))["error"] == "not-found"
    assert run(0, "user", "identities") == []


def test_no_terminal_no_question(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    answer = run(2, "user", "add", "quiet")
    assert "--password-file" in answer["remedy"]


def test_groups_and_roles(run: Run) -> None:
    run(0, "group", "add", "readers")
    run(0, "group", "join", "readers", "anna", "--until", "8h")
    assert [one["name"] for one in run(0, "group", "list")[0]["members"]] == ["anna"]
    run(0, "group", "leave", "readers", "anna")
    assert run(0, "group", "list")[0]["members"] == []
    run(0, "group", "remove", "readers")
    assert run(0, "group", "list") == []
    assert {"owner", "modality", "security-officer"} <= {one["name"] for one in run(0, "role", "list")}
    made = run(0, "role", "add", "looker", "--permission", "search", "--permission", "metadata")
    assert run(0, "role", "show", "looker")["permissions"] == made["permissions"] == ["search", "metadata"]
    assert run(2, "role", "add", "odd", "--permission", "fly")["error"] == "invalid-request"
    run(0, "role", "assign", "auditor", "--to", "anna", "--until", "1h")
    run(0, "role", "withdraw", "auditor", "--from", "anna")


def test_roles_change_and_policy_as_text(run: Run, said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(0, "role", "add", "scribe", "--permission", "search")
    assert run(0, "role", "change", "scribe", "--add", "verify", "--reason", "text")["permissions"] == ["search", "verify"]
    assert run(2, "role", "change", "scribe")["error"] == "invalid-request"
    assert run(1, "role", "change", "owner", "--remove", "purge")["error"] == "state-conflict"
    assert next(row for row in run(0, "role", "matrix") if row["permission"] == "verify")["roles"][-1] == "scribe"
    run(0, "user", "add", "poly", "--password-file", str(_password(tmp_path)))
    policy = tmp_path / "policy.toml"
    run(0, "policy", "export", "--to", str(policy))
    assert run(0, "policy", "test", str(policy))["changes"] == []
    assert run(0, "policy", "apply", str(policy))["applied"] is False
    more = '\n[[grant]]\nto = "poly"\nrole = "scribe"\neverything = true\n'
    more += '[[expect]]\nsubject = "poly"\npermission = "audit"\ndecision = "allow"\n'
    policy.write_text(policy.read_text().replace('["search", "verify"]', '["search"]') + more)
    failed = run(1, "policy", "test", str(policy))
    assert (failed["ok"], failed["failed"][0]["found"], len(failed["changes"])) == (False, "deny", 2)
    assert run(1, "policy", "apply", str(policy), "--yes")["applied"] is False
    policy.write_text(policy.read_text().replace('"allow"', '"deny"'))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(2, "policy", "apply", str(policy))["error"] == "invalid-request"
    told = said("policy", "apply", str(policy), "--yes", "--reason", "as agreed")
    assert "poly has scribe on everything" in told
    assert "applied: 2 changes" in told
    run(0, "policy", "apply", str(policy))
    assert said("policy", "export").startswith("# The policy")
    run(0, "grant", "revoke", str(run(0, "grant", "list", "--to", "poly")[0]["id"]))
    run(0, "role", "remove", "scribe")


def _password(folder: Path) -> Path:
    path = folder / "their-password"
    path.write_text("nine boats on a lake\n")
    return path


def test_two_people_at_the_command_line(
    run: Run, said: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    for name in ("una", "duo"):
        run(0, "user", "add", name, "--password-file", str(_password(tmp_path)))
        run(0, "role", "assign", "security-officer", "--to", name)
    before = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(before + "[policy]\ntwo_person = true\n")
    try:
        waits = run(3, "role", "add", "chief", "--permission", "role-manage")
        assert waits["error"] == "awaits-approval"
        [request] = run(0, "approval", "list")
        number = str(request["id"])
        assert run(0, "approval", "show", number)["said"] == "add the role chief with role-manage"
        (tmp_path / "wrong").write_text("not the password\n")
        run(3, "approval", "approve", number, "--as", "una", "--password-file", str(tmp_path / "wrong"))
        assert run(0, "approval", "approve", number, "--as", "una", "--password-file", str(_password(tmp_path)))["state"] == "done"
        assert run(0, "role", "show", "chief")["permissions"] == ["role-manage"]
        run(3, "key", "slot", "add", "--key-file", str(tmp_path / "k"), "--label", "k")
        number = str(run(0, "approval", "list")[0]["id"])
        told = said("approval", "approve", number, "--as", "duo", "--password-file", str(_password(tmp_path)))
        assert "gives the same command again" in told
        slot = run(0, "key", "slot", "add", "--key-file", str(tmp_path / "k"), "--label", "k")["id"]
        run(3, "key", "slot", "remove", slot)
        run(0, "approval", "refuse", str(run(0, "approval", "list")[0]["id"]), "--note", "keep it")
        assert [row["state"] for row in run(0, "approval", "list", "--all")] == ["refused", "done", "done"]
    finally:
        (folder / "config.toml").write_text(before)
    run(0, "key", "slot", "remove", slot)
    run(0, "role", "remove", "chief")
    for name in ("una", "duo"):
        run(0, "user", "remove", name)


def test_import_and_its_report(run: Run, folder: Path, stored: Any) -> None:
    report = folder / "report.jsonl"
    (folder / "files" / "note.txt").write_text("not an image")
    answer = run(1, "import", str(folder / "files"), "--report", str(report))
    (folder / "files" / "note.txt").unlink()
    assert (answer["stored"], answer["duplicate"], answer["conflict"], answer["rejected"]) == (0, 2, 0, 1)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted(line["outcome"] for line in lines) == ["duplicate", "duplicate", "rejected"]
    assert [line["reason"] != "" for line in lines if line["outcome"] == "rejected"] == [True]
    assert answer["job"] in {one["id"] for one in run(0, "import", "list")}
    assert len(run(0, "import", "show", str(answer["job"]))["files"]) == 3
    assert run(2, "import", str(folder / "nowhere"))["error"] == "usage"
    assert run(1, "import", "show", "999999")["error"] == "not-found"


def test_grants_explain_and_revoke(run: Run, said: Callable[..., str], folder: Path, stored: Any) -> None:
    series, study = stored.SeriesInstanceUID, stored.StudyInstanceUID
    run(0, "user", "add", "ned", "--password-file", str(folder / "password"))
    assert run(0, "explain", "ned", series)["allowed"] is False
    made = run(0, "grant", "add", "--to", "ned", "--role", "referrer", "--series", series, "--until", "8h", "--reason", "a reason")
    answer = run(0, "explain", "ned", series)
    assert answer["allowed"] is True
    assert [(one["grant"], one["effect"]) for one in answer["because"]] == [(made["id"], "allow")]
    ends = datetime.fromisoformat(made["until"])
    assert timedelta(hours=7.9) < ends - datetime.now(UTC) < timedelta(hours=8.1)
    denied = run(0, "grant", "add", "--to", "ned", "--role", "referrer", "--study", study, "--deny")
    assert run(0, "explain", "ned", series)["allowed"] is False
    text = said("explain", "ned", series)
    assert "does not see" in text
    assert f"grant {denied['id']}: deny" in text
    run(0, "grant", "revoke", str(denied["id"]), "--reason", "over")
    assert run(0, "explain", "ned", series)["allowed"] is True
    assert {one["id"] for one in run(0, "grant", "list", "--to", "ned")} == {made["id"]}
    assert {one["id"] for one in run(0, "grant", "list", "--to", "ned", "--all")} == {made["id"], denied["id"]}
    for wrong in (["--everything", "--study", study], [], ["--patient", "P", "--series", series]):
        assert run(2, "grant", "add", "--to", "ned", "--role", "referrer", *wrong)["error"] == "invalid-request"
    assert run(1, "grant", "add", "--to", "ned", "--role", "referrer", "--study", "1.2.3")["error"] == "not-found"
    assert run(0, "grant", "add", "--to", "ned", "--role", "referrer", "--patient", "SOON", "--expected")["id"]
    assert run(0, "explain", "ned", "1.2.3")["allowed"] is False


def test_tokens(run: Run, said: Callable[..., str], stored: Any) -> None:
    made = run(0, "token", "create", "--for", "anna", "--until", "8h", "--series", stored.SeriesInstanceUID, "--permission", "search")
    assert made["token"].startswith("sr_")
    listed = run(0, "token", "list", "--for", "anna")
    assert [one["id"] for one in listed] == [made["id"]]
    assert made["token"] not in json.dumps(listed)
    run(0, "token", "revoke", str(made["id"]))
    root = run(0, "token", "create", "--for", "anna", "--network", "10.0.0.0/8", "--whole-datastore", "clinical", "--label", "viewer")
    below = run(0, "token", "create", "--for", "anna", "--under", root["prefix"], "--permission", "search")
    assert (below["parent"], root["networks"], root["bounded_to"]) == (root["id"], ["10.0.0.0/8"], 1)
    assert run(1, "token", "create", "--for", "anna", "--patient", "NOBODY", "--issuer", "X")["error"] == "not-found"
    assert [one["depth"] for one in run(0, "token", "list", "--tree")][:3] == [0, 1, 0]
    tree = said("token", "list", "--tree")
    assert f"  {below['prefix']}" in tree
    assert "with 1 made with it" in said("token", "revoke", root["prefix"])
    assert {one["state"] for one in run(0, "token", "list", "--for", "anna")} == {"revoked"}
    text = said("token", "create", "--for", "anna")
    assert text.strip().startswith("sr_")
    assert "\n" not in text.strip()


def test_peers(run: Run, said: Callable[..., str], folder: Path) -> None:
    certs = folder / "certs"
    made = run(0, "peer", "add", "CT1", "--aet", "CT1", "--issue", str(certs), "--address", "127.0.0.1:1")
    assert {path.name for path in certs.iterdir()} == {"key.pem", "cert.pem", "ca.pem"}
    assert made["id"] in {one["id"] for one in run(0, "peer", "list")}
    assert run(0, "peer", "pending") == []
    assert run(1, "peer", "test", "CT1")["ok"] is False
    again = run(0, "peer", "renew", "CT1", "--issue", str(folder / "certs2"))
    assert again["certificate_sha256"] != made["certificate_sha256"]
    text = said("peer", "add", "OLD", "--aet", "OLD", "--address", "10.1.2.3:104", "--plain")
    assert "the plain listener is off" in text
    assert run(0, "peer", "list")[-1]["networks"] == ["10.1.2.3/32"]
    assert run(2, "peer", "add", "X", "--aet", "X")["error"] == "invalid-request"
    assert run(2, "peer", "renew", "CT1")["error"] == "invalid-request"
    assert run(1, "peer", "enrol", "77", "NEW")["error"] == "not-found"
    run(0, "peer", "remove", "OLD")
    assert {one["name"] for one in run(0, "peer", "list")} == {"CT1"}


def test_delete_and_undo(run: Run, stored: Any) -> None:
    uid = stored.SOPInstanceUID
    assert run(0, "delete", "--instance", uid, "--reason", "wrong patient")["deleted"] == 1
    assert run(1, "delete", "--instance", uid, "--reason", "again")["error"] == "not-found"
    assert run(0, "delete", "--instance", uid, "--reason", "right after all", "--undo")["restored"] == 1
    assert run(0, "delete", "--study", stored.StudyInstanceUID, "--reason", "all")["deleted"] == 2
    assert run(0, "delete", "--series", stored.SeriesInstanceUID, "--reason", "back", "--undo")["restored"] == 2
    assert run(2, "delete", "--reason", "what")["error"] == "invalid-request"


def test_purge(run: Run, said: Callable[..., str], stored: Any, folder: Path) -> None:
    uid = str(stored.StudyInstanceUID)
    assert run(1, "purge", "--study", uid, "--reason", "nothing deleted")["error"] == "not-found"
    run(0, "delete", "--study", uid, "--reason", "all")
    assert run(2, "purge", "--reason", "what")["error"] == "invalid-request"
    assert run(2, "purge", "--older-than", "soon", "--reason", "when")["error"] == "invalid-request"
    number = run(0, "hold", "add", "--study", uid, "--reason", "case")["id"]
    held = run(1, "purge", "--study", uid, "--reason", "on hold")
    assert (held["error"], "hold" in held["message"], "hold list" in held["remedy"]) == ("state-conflict", True, True)
    assert "1 studies are on hold and stay" in said("purge", "--older-than", "0d", "--reason", "on hold")
    run(0, "hold", "remove", str(number), "--reason", "closed")
    assert run(0, "purge", "--older-than", "90d", "--reason", "not yet")["instances"] == 0
    would = run(0, "purge", "--study", uid, "--reason", "look", "--dry-run")
    assert (would["instances"], would["dry_run"]) == (2, True)
    done = run(0, "purge", "--study", uid, "--reason", "time is up")
    assert (done["ok"], done["instances"], done["studies"], done["keys"]) == (True, 2, 1, 1)
    assert run(1, "delete", "--study", uid, "--reason", "back", "--undo")["error"] == "not-found"
    assert run(0, "verify")["findings"] == []
    assert run(0, "import", str(folder / "files"))["stored"] == 2


def test_reconcile(run: Run, folder: Path, stored: Any) -> None:
    changed = pydicom.dcmread(folder / "files" / "0.dcm")
    changed.StudyDescription = "another description"
    changed.save_as(folder / "changed.dcm")
    assert run(1, "import", str(folder / "changed.dcm"))["conflict"] == 1
    (waiting,) = run(0, "reconcile", "list")
    assert waiting["kind"] == "conflict"
    assert "00081030" in run(0, "reconcile", "show", str(waiting["id"]))["differing"]
    run(0, "reconcile", "reject", str(waiting["id"]), "--reason", "the first is right")
    assert run(0, "reconcile", "list") == []
    assert len(run(0, "reconcile", "list", "--all")) == 1
    assert run(2, "reconcile", "accept", str(waiting["id"]), "--reason", "too late")["error"] == "invalid-request"
    assert run(1, "reconcile", "show", "12345")["error"] == "not-found"


@pytest.mark.parametrize("mode", [[], ["--quick"], ["--full"], ["--keyless"], ["--subset", "1/2"]])
def test_verify(run: Run, stored: Any, mode: list[str]) -> None:
    answer = run(0, "verify", *mode)
    assert answer["ok"] is True
    assert answer["findings"] == []
    assert answer["checked"] >= 0


def test_verify_of_nonsense(run: Run) -> None:
    for part in ("0%", "101%", "1/0", "half"):
        assert run(2, "verify", "--subset", part)["error"] == "invalid-request"


def test_verify_finds_a_changed_byte(run: Run, folder: Path, stored: Any) -> None:
    segment = max((folder / "storage" / "segments").glob("*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    place = 8192
    data[place] ^= 1
    segment.write_bytes(data)
    try:
        answer = run(1, "verify", "--full")
        assert answer["ok"] is False
        assert answer["findings"][0]["code"].startswith("V")
        assert {"code", "sop_instance_uid", "detail"} <= set(answer["findings"][0])
    finally:
        data[place] ^= 1
        segment.write_bytes(data)
    run(0, "verify", "--full")


def test_ledger_and_audit(run: Run, said: Callable[..., str], folder: Path, stored: Any) -> None:
    answer = run(0, "ledger", "verify")
    assert answer["ok"] is True
    assert len(bytes.fromhex(answer["root"])) == 32
    proof, keys = folder / "proof", folder / "public-keys"
    run(0, "ledger", "prove", stored.SOPInstanceUID, "--to", str(proof))
    keys.write_text(said("ledger", "keys"))
    checked = run(0, "ledger", "check-proof", str(proof), "--keys", str(keys))
    assert checked["trusted"] is True
    assert run(0, "ledger", "check-proof", str(proof))["trusted"] is False
    assert run(1, "ledger", "prove", "1.2.3.4")["error"] == "not-found"
    found = run(0, "audit", "search", "--study", stored.StudyInstanceUID, "--kind", "stored")
    assert found
    assert all(one["kind"] == "stored" for one in found)
    assert {"id", "at", "kind", "outcome"} <= set(found[0])
    assert "console" in said("audit", "search", "--user", "console", "--limit", "3")
    assert run(2, "audit", "search", "--kind", "danced")["error"] == "invalid-request"


def test_keys(run: Run, folder: Path, stored: Any) -> None:
    before = {one["id"] for one in run(0, "key", "list") if one["purpose"] == "kek" and one["state"] == "active"}
    assert run(0, "key", "rotate")["destroyed"] == 1
    after = {one["id"] for one in run(0, "key", "list") if one["purpose"] == "kek" and one["state"] == "active"}
    assert before.isdisjoint(after)
    run(0, "verify", "--full")
    made = run(0, "key", "slot", "add", "--recovery-kit", str(folder / "kit.txt"), "--label", "safe")
    assert (folder / "kit.txt").stat().st_mode & 0o077 == 0
    assert made["id"] in {one["id"] for one in run(0, "key", "slot", "list")}
    run(0, "key", "slot", "remove", made["id"])
    assert len(run(0, "key", "slot", "list")) == 1
    (only,) = run(0, "key", "slot", "list")
    assert run(2, "key", "slot", "remove", only["id"])["error"] == "invalid-request"


def test_doctor_and_upgrade(run: Run) -> None:
    answer = run(0, "doctor")
    assert answer["ok"] is True
    assert all(one["remedy"] for one in answer["checks"] if one["state"] != "ok")
    assert run(0, "db", "upgrade") == {"upgraded": True}


def test_the_operating_systems_user_is_in_the_event(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "maria")
    monkeypatch.setattr("archive.cli.session.os.geteuid", lambda: 0)
    run(0, "group", "add", "witnessed")
    monkeypatch.undo()
    found = run(0, "audit", "search", "--kind", "user-changed", "--limit", "1")
    assert "maria (sudo)" in json.dumps(found[0]["body"])


def test_a_study_is_not_destroyed_when_its_receipt_could_not_be_kept(run: Run, folder: Path, stored: Any) -> None:
    study = str(stored.StudyInstanceUID)
    assert run(4, "shred", study, "--reason", "asked for", "--receipt", str(folder / "nowhere" / "receipt"))["error"] == "unavailable"
    assert run(2, "shred", study, "--reason", "asked for", "--receipt", str(folder / "password"))["error"] == "invalid-request"
    number = run(0, "hold", "add", "--study", study, "--reason", "kept")["id"]
    assert run(1, "shred", study, "--reason", "asked for", "--receipt", str(folder / "receipt"))["error"] == "state-conflict"
    assert not (folder / "receipt").exists()
    run(0, "hold", "remove", str(number), "--reason", "done")
    assert run(0, "verify", "--study", study)["checked"]


def test_nothing_is_said_to_hold_of_a_study_that_is_not_there(run: Run, stored: Any) -> None:
    assert run(1, "verify", "--study", f"{stored.StudyInstanceUID}.9")["error"] == "not-found"


@pytest.mark.parametrize("command", [("purge", "--reason", "old", "--older-than"), ("key", "rekey", "--all-older-than")], ids=" ".join)
def test_a_time_before_the_calendar_is_wrong_usage(run: Run, stored: Any, command: tuple[str, ...]) -> None:
    assert stored
    assert run(2, *command, "999999d")["error"] == "invalid-request"
