"""An archive whose making was cut short is made to its end; databases that are missing or not ours are refused by name, never made anew."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import pytest

from archive.errors import ConfigurationError, DatabaseUnavailable
from archive.keys.keyring import Keyring
from archive.services import setup
from tests.ports import free_port
from tests.services import archives


@pytest.mark.parametrize("name", ["index", "keystore"])
@pytest.mark.parametrize("work", [setup.make_databases, setup.check_databases])
def test_a_missing_database_is_not_made_anew(tmp_path: Path, name: str, work: object) -> None:
    config = archives.made(tmp_path)
    path = config.index_path if name == "index" else config.keystore_path
    path.unlink()
    with pytest.raises(DatabaseUnavailable, match=f"the {name} is missing") as refused:
        work(config, Keyring.open(config))  # type: ignore[operator]
    assert "backup" in refused.value.remedy
    assert not path.exists()


@pytest.mark.parametrize("name", ["index", "keystore"])
def test_a_database_that_does_not_open_is_named(tmp_path: Path, name: str) -> None:
    config = archives.made(tmp_path)
    path = config.index_path if name == "index" else config.keystore_path
    path.write_bytes(bytes(8192))
    with pytest.raises(DatabaseUnavailable, match=f"^{name} .*does not open with this key") as refused:
        setup.check_databases(config, Keyring.open(config))
    assert str(path) in refused.value.message
    assert "backup" in refused.value.remedy


def test_nobody_is_told_to_make_an_index_anew_whose_server_is_only_down(tmp_path: Path) -> None:
    archives.made(tmp_path)
    config = archives.configured(tmp_path, database={"url": f"postgresql+psycopg://CANARY@127.0.0.1:{free_port()}/strongroom"})
    with pytest.raises(DatabaseUnavailable, match="the database's server does not answer") as refused:
        setup.check_databases(config, Keyring.open(config))
    assert "server runs" in refused.value.remedy
    assert "rebuild-index" not in refused.value.remedy
    assert "CANARY" not in f"{refused.value.message} {refused.value.remedy}"


class Killed(BaseException):
    """The process ends here."""


STEPS = (
    "archive.keys.keyring.Keyring.create", "archive.db.migrate.upgrade", "archive.keys.ca.create",
    "archive.access.bootstrap.bootstrap", "archive.ledger.log.Ledger.record",
)


@pytest.mark.parametrize(("step", "after", "given"), [
    *((step, after, None) for step in STEPS for after in (False, True)), (STEPS[-1], False, archives.PASSWORD),
])
def test_an_archive_whose_making_was_cut_short_is_made_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, given: str | None
) -> None:
    config = archives.configured(tmp_path)
    home, _, name = step.rpartition(".")
    owner = pkgutil.resolve_name(home.replace(".Keyring", ":Keyring").replace(".Ledger", ":Ledger"))
    done = getattr(owner, name)

    def cut(*arguments: Any, **options: Any) -> None:
        if after:
            done(*arguments, **options)
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(owner, name, cut)
        with pytest.raises(Killed):
            setup.initialise(config, admin="ana", password=given)
    assert not setup.is_initialised(config)
    if (config.keys_dir / "keyring.json").exists():
        with pytest.raises(ConfigurationError, match="not made to its end") as refused:
            setup.check_databases(config, Keyring.open(config))
        assert "archive init" in refused.value.remedy
    made = setup.initialise(config, admin="ana", password=given)
    password = given or made.first_password.read_text().strip()  # type: ignore[union-attr] # drawn
    assert setup.is_initialised(config)
    with archives.opened(config) as node:
        assert archives.store(node, archives.instance(1)).status == "stored"
        assert node.signin.password("ana", password, address="127.0.0.1", user_agent="").subject.name == "ana"
        assert [one["name"] for one in node.accounts.list_users(archives.the_console(node))] == ["ana"]
        assert len(node.keyring.keks()) == 1
        assert node.verify.run(archives.the_console(node), "full").findings == []
    with pytest.raises(ConfigurationError, match="already"):
        setup.initialise(config, admin="ana", password=given)


def test_what_was_cut_short_at_its_very_end_is_whole(tmp_path: Path) -> None:
    config = archives.configured(tmp_path)
    first = setup.initialise(config, admin="ana").first_password
    assert first is not None
    password = first.read_text()
    (config.run_dir / setup.UNFINISHED).write_bytes(b"")
    again = setup.initialise(config, admin="ben")
    assert (again.admin, again.first_password, first.read_text()) == ("ana", first, password)


def test_a_password_given_at_the_second_attempt_is_the_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = archives.configured(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(setup, "_first_user", lambda *_given, **_options: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            setup.initialise(config)
    assert (config.storage_dir / "first-password").exists()
    assert setup.initialise(config, password=archives.PASSWORD).first_password is None
    with archives.opened(config) as node:
        node.signin.password("admin", archives.PASSWORD, address="127.0.0.1", user_agent="")


def test_a_recovery_kit_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, kit = archives.configured(tmp_path), tmp_path / "kit"
    with monkeypatch.context() as killed:
        killed.setattr(setup, "make_databases", lambda *_given, **_options: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            setup.initialise(config, recovery_kit=kit)
    text = kit.read_text()
    assert setup.initialise(config, recovery_kit=kit).recovery_kit == kit
    assert kit.read_text() == text
    assert [one["kind"] for one in Keyring.open(config, recovery_kit=kit).slots()] == ["key-file", "recovery"]


def test_a_database_that_holds_an_archive_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgresql_url: str
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    archives.made(tmp_path / "one", own_keys=True, database={"url": postgresql_url})
    monkeypatch.setattr(setup, "make_databases", lambda *_given, **_options: pytest.fail("the schema of another archive was touched"))
    with pytest.raises(ConfigurationError, match="holds an archive already"):
        setup.initialise(archives.configured(tmp_path / "two", database={"url": postgresql_url}), admin="ana")
    monkeypatch.undo()
    with archives.opened(archives.configured(tmp_path / "one")) as node:
        assert [one["name"] for one in node.accounts.list_users(archives.the_console(node))] == ["admin"]
    setup.initialise(archives.configured(tmp_path / "two"), admin="ana")  # the same folder, another database
