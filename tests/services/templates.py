"""Folders that are made once in a test run and copied then: creating an archive costs a hundred times what copying it does."""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

_FOLDERS: dict[str, tuple[Path, str]] = {}


def copy(folder: Path, sections: dict[str, dict[str, Any]], make: Callable[[Path, dict[str, dict[str, Any]]], object]) -> None:
    """Put into `folder`, and into the empty PostgreSQL database the sections name, what `make` made for the first who asked."""
    server, _, database = str(sections.get("database", {}).get("url", "")).rpartition("/")
    key = repr((server, sorted((name, sorted(one.items())) for name, one in sections.items() if name != "database")))
    if key not in _FOLDERS:
        first, template = Path(tempfile.mkdtemp(prefix="srt")), f"template_{secrets.token_hex(6)}"
        atexit.register(shutil.rmtree, first, ignore_errors=True)
        elsewhere = {}
        if server:
            _execute(server, f'CREATE DATABASE "{template}"')
            elsewhere = {"database": {**sections["database"], "url": f"{server}/{template}"}}
        make(first, {**sections, **elsewhere})
        _FOLDERS[key] = first, template
    first, template = _FOLDERS[key]
    if server:
        _execute(server, f'DROP DATABASE "{database}"', f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
    shutil.copytree(first, folder, dirs_exist_ok=True)


def _execute(server: str, *statements: str) -> None:
    with psycopg.connect(server.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]
