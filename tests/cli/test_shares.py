"""`archive share` and `archive album` call the services they promise and answer what they promise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.cli.main import run
from archive.cli.session import Session
from tests.services import archives


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with doc, who may share a study."""
    folder = tmp_path_factory.mktemp("shares")
    with archives.opened(archives.made(folder)) as node:
        archives.store(node, archives.instance(1))
        for name in ("doc", "ann"):
            node.accounts.add_user(archives.the_console(node), name, password=archives.PASSWORD)
        node.accounts.add_grant(archives.the_console(node), to="doc", role="radiologist", target=Target("study", "1.2.3"))
    return folder


@pytest.fixture
def command(tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`command(status, *words)`: run one and return its answer."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    config = archives.configured(tmp_path)

    def call(status: int, *words: str) -> Any:
        session = Session()
        session.use(config)
        assert run([*words, "--json"], session) == status, capsys.readouterr().err
        out = capsys.readouterr().out
        return json.loads(out) if out.strip() else None

    return call


def test_a_link_from_the_command_line(command: Any) -> None:
    told = command(0, "share", "create", "--study", "1.2.3", "--as", "doc", "--until", "1d", "--preview")
    assert told["items"][0]["instances"] == 1
    assert command(0, "share", "list") == []
    made = command(0, "share", "create", "--study", "1.2.3", "--as", "doc", "--until", "1d", "--to", "Dr Ott", "--views", "2")
    assert made["url"].startswith("https://127.0.0.1:8443/s#")
    assert len(made["code"]) == 6
    (row,) = command(0, "share", "list")
    assert (row["id"], row["owner"], row["recipient"], row["state"], row["max_views"]) == (made["id"], "doc", "Dr Ott", "active", 2)
    assert command(0, "share", "revoke", str(made["id"]))["state"] == "revoked"
    for wrong in (["--study", "1.2.3"], [], ["--study", "9.9", "--as", "doc"], ["--study", "1.2.3", "--as", "ann"],
                  ["--study", "1.2.3", "--as", "doc", "--until", "1000d"], ["--study", "1.2.3", "--as", "nobody"]):
        command(2 if "9.9" not in wrong and "ann" not in wrong and "nobody" not in wrong else 1, "share", "create", *wrong)


def test_an_album_from_the_command_line(command: Any) -> None:
    number = str(command(0, "album", "create", "Board", "--as", "doc")["id"])
    assert command(0, "album", "add", number, "--study", "1.2.3", "--as", "doc")["items"][0]["uid"] == "1.2.3"
    assert command(0, "album", "share", number, "--with", "ann", "--as", "doc", "--rights", "add")["rights"] == "add"
    assert command(0, "explain", "ann", "1.2.3")["allowed"]
    assert [one["uid"] for one in command(0, "album", "show", number, "--as", "ann")["items"]] == ["1.2.3"]
    command(0, "album", "unshare", number, "--with", "ann", "--as", "doc")
    assert not command(0, "explain", "ann", "1.2.3")["allowed"]
    command(0, "album", "remove", number, "--study", "1.2.3", "--as", "doc")
    assert command(0, "album", "list")[0]["name"] == "Board"
    command(0, "album", "end", number)
    assert command(0, "album", "list") == []
