"""What a command imports: a second of every call would go into what most commands never use."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from archive.cli import main
from archive.node import USE_CASES, open_node
from tests.services import archives

ALWAYS_LATE = {
    "PIL", "alembic", "archive.dimse", "archive.web", "authlib", "flask", "gdcm", "joserfc", "lxml", "maxminddb", "numpy", "pydicom",
    "pynetdicom", "reportlab", "requests", "rich", "sqlalchemy.dialects.postgresql", "webauthn",
}
"""Imported by the commands that need them, never by opening an archive."""
UNOPENED = ALWAYS_LATE | {"archive.node", "archive.services", "cryptography", "msgspec", "sqlalchemy", "sqlcipher3"}


def imported(*arguments: str) -> set[str]:
    """The modules a process has that gave this command."""
    code = (
        "import sys\nfrom archive.cli import main\nfrom archive.cli.session import Session\n"
        "main.run(sys.argv[1:], Session())\nprint('|', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=True)
    assert "|" in done.stdout, done.stderr
    return set(done.stdout.rpartition("|")[2].split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """What it made for the time being is removed, and a second signal does not keep it from that."""
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom archive.cli import main\n"
        "signal.signal(int(sys.argv[1]), signal.SIG_DFL)\n"  # whoever runs the tests may have it ignored
        "def command(*_):\n"
        "    try:\n        os.kill(os.getpid(), int(sys.argv[1]))\n        time.sleep(60)\n"
        "    finally:\n        os.kill(os.getpid(), int(sys.argv[1]))\n        Path(sys.argv[2]).write_text('removed')\n"
        "main._run = command\nmain.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(number)), str(tmp_path / "told")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, "archive: stopped\n")
    assert (tmp_path / "told").read_text() == "removed"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an archive."""
    folder = tmp_path_factory.mktemp("start")
    config = archives.made(folder)
    (folder / "config.toml").write_text(f'[archive]\nstorage = "{config.storage_dir}"\n[storage]\nreserve = "0%"\n')
    return folder


@pytest.mark.parametrize("arguments", [("--help",), ("grant", "add", "--help")], ids=" ".join)
def test_what_opens_nothing_imports_nothing(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & UNOPENED


def test_a_wrong_configuration_is_told_before_anything_is_imported(tmp_path: Path) -> None:
    assert not imported("--config", str(tmp_path / "none.toml"), "user", "list") & (UNOPENED - {"msgspec"})


def test_status_opens_nothing(home: Path) -> None:
    assert not imported("--config", str(home / "config.toml"), "status") & {"sqlalchemy", "cryptography", *ALWAYS_LATE}


def test_an_opened_archive_has_imported_what_it_stands_on_alone(home: Path) -> None:
    found = imported("--config", str(home / "config.toml"), "grant", "list")
    assert "archive.services.accounts" in found
    assert not found & ALWAYS_LATE


def test_every_command_is_made_by_the_modules_named_for_it() -> None:
    context = click.Context(main.archive)
    assert main.archive.list_commands(context) == sorted(main.load_commands().commands)
    assert set(main.COMMANDS) == set(main.archive.commands)


def test_every_use_case_is_made_once_when_it_is_asked_for(home: Path) -> None:
    node = open_node(archives.configured(home))
    try:
        assert "store" not in vars(node)
        with pytest.raises(AttributeError):
            _ = node.nothing
        found: list[object] = []
        threads = [threading.Thread(target=lambda: found.append(node.forwarding)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(one) for one in found}) == 1
        assert {name: type(getattr(node, name)).__name__ for name in USE_CASES} == USE_CASES
        assert all(getattr(node, name) is getattr(node, name) for name in USE_CASES)
    finally:
        node.close()
