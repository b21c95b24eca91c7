"""`archive webhook`: added with its secret, tested, listed, removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.cli.main import run
from archive.cli.session import Session
from archive.node import Node
from tests.services import archives
from tests.web.test_changes import Receiver


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path, webhooks={"networks": ["127.0.0.0/8"]})) as opened:
        opened.accounts.add_user(archives.the_console(opened), "mia", roles=["technologist"], password=archives.PASSWORD)
        yield opened


def test_from_the_first_to_the_last_command(node: Node, capsys: Any) -> None:
    class Here(Session):
        @property
        def node(self) -> Any:
            return node

        def close(self) -> None:
            """The fixture closes it."""

    def told(*words: str) -> Any:
        assert run(["--json", "webhook", *words], Here()) == 0
        return json.loads(capsys.readouterr().out)

    receiver = Receiver()
    try:
        made = told("add", receiver.url, "--as", "mia")
        assert made["secret"].startswith("whsec_")
        assert told("test", str(made["id"]))["status"] == 200
        assert json.loads(receiver.got[0][1])["type"] == "test"
        [row] = told("list")
        assert (row["state"], row["id"]) == ("delivering", made["id"])
        assert "secret" not in row
        told("remove", str(made["id"]))
        assert told("list") == []
        assert run(["webhook", "remove", str(made["id"])], Here()) == 1
        assert "Traceback" not in capsys.readouterr().err
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
