"""Exit statuses and error messages."""

from __future__ import annotations

import json

import click
import pytest

from archive import errors
from archive.cli import failures, main
from archive.cli.session import Session


def every_error() -> list[type[errors.ArchiveError]]:
    found, queue = [], [errors.ArchiveError]
    while queue:
        kind = queue.pop()
        if kind.__module__ == errors.__name__:
            found.append(kind)
        queue += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.code)
def test_every_error_says_what_to_do(kind: type[errors.ArchiveError], capsys: pytest.CaptureFixture[str]) -> None:
    status = failures.show(kind("it failed"), as_json=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert first == "archive: it failed"
    assert second.startswith("  what to do: ")
    assert len(second) > 20
    assert status in {1, 2, 3, 4}


@pytest.mark.parametrize(("kind", "status"), [
    (errors.ConfigurationError, 2), (errors.InvalidRequest, 2), (errors.Forbidden, 3), (errors.Unauthenticated, 3),
    (errors.KeysUnavailable, 4), (errors.DatabaseUnavailable, 4), (errors.OutOfSpace, 4), (errors.ReadOnly, 4),
    (errors.NotFound, 1), (errors.LedgerBroken, 1), (errors.InvalidInstance, 1),
])
def test_exit_statuses_of_the_contract(kind: type[errors.ArchiveError], status: int) -> None:
    assert failures.exit_status(kind("x")) == status


def test_an_error_as_json_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    failures.show(errors.OutOfSpace("full", remedy="free space"), as_json=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err) == {"error": "out-of-space", "message": "full", "remedy": "free space"}


@pytest.mark.parametrize("arguments", [["nonsense"], ["user", "add"], ["import"], ["status", "--what"], ["grant", "add", "--to", "x"],
                                       ["grant", "add", "--to", "x", "--role", "y", "--until", "someday", "--everything"]])
def test_wrong_usage_is_2_and_names_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments, Session()) == 2
    assert "--help" in capsys.readouterr().err
    assert main.run(["--json", *arguments], Session()) == 2
    assert json.loads(capsys.readouterr().err)["error"] == "usage"


def test_no_configuration_is_2(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARCHIVE_CONFIG", raising=False)
    assert main.run(["user", "list"], Session()) == 2
    assert "archive init" in capsys.readouterr().err


def test_no_keys_is_4(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("")
    assert main.run(["user", "list", "--config", str(tmp_path / "config.toml")], Session()) == 4
    assert "archive init" in capsys.readouterr().err


def test_the_configuration_comes_from_option_then_environment_then_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def attach() -> Session:
        session = Session()
        session.close = lambda: seen.append(str(session.config_path))  # type: ignore[method-assign]
        return session

    monkeypatch.delenv("ARCHIVE_CONFIG", raising=False)
    main.run(["status"], attach())
    monkeypatch.setenv("ARCHIVE_CONFIG", "/there.toml")
    main.run(["status"], attach())
    main.run(["status", "--config", "after.toml"], attach())
    main.run(["--config", "before.toml", "status"], attach())
    assert seen == ["config.toml", "/there.toml", "after.toml", "before.toml"]


def walk(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += walk(child, (*path, name))
    return found


EVERY = walk(main.load_commands())


@pytest.mark.parametrize(("path", "command"), EVERY, ids=lambda one: " ".join(one) if isinstance(one, tuple) else "")
def test_every_command_has_help_config_and_json(path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*path, "--help"], Session()) == 0
    shown = capsys.readouterr().out
    assert "--config" in shown
    assert "--json" in shown
    assert command.help
    assert command.help.strip()[0].isupper()
