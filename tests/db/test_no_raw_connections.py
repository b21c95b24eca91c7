"""The third wall: no code outside db/ gets past SQLAlchemy, and tokens are made in two places."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "archive"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "_migrations" not in path.parts)
RAW = {"raw_connection", "cursor", "exec_driver_sql", "driver_connection", "dbapi_connection", "create_engine", "execute_batch"}
DRIVERS = {"sqlite3", "sqlcipher3", "psycopg", "psycopg2"}
MAKERS = {"access/policy.py", "db/migrate.py"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def raw_uses(tree: ast.Module) -> set[str]:
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & RAW
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names if alias.name.split(".")[0] in DRIVERS}
        elif isinstance(node, ast.ImportFrom):
            driver = (node.module or "").split(".")[0] in DRIVERS
            used |= {f"{node.module}.{alias.name}" for alias in node.names if driver or alias.name in RAW}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            used |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant) and argument.value in RAW}
    return used


def token_calls(tree: ast.Module) -> int:
    """Calls of Token, under whatever name the module imports it."""
    names = {"Token"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("db.guard"):
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "Token"}
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    spoken = [func.attr if isinstance(func, ast.Attribute) else func.id for func in called if isinstance(func, ast.Attribute | ast.Name)]
    return sum(name in names for name in spoken)


def test_there_is_something_to_look_at() -> None:
    assert {"db/engine.py", "access/policy.py", "index/search.py"} <= {name_of(path) for path in SOURCES}


@pytest.mark.parametrize("path", [path for path in SOURCES if not name_of(path).startswith("db/")], ids=name_of)
def test_no_raw_connection(path: Path) -> None:
    assert raw_uses(tree_of(path)) == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_tokens_are_made_in_two_places(path: Path) -> None:
    assert (token_calls(tree_of(path)) > 0) <= (name_of(path) in MAKERS)


@pytest.mark.parametrize(
    "code",
    ["engine.raw_connection()", "x.connection.cursor()", "tx.exec_driver_sql('')", "import sqlcipher3.dbapi2",
     "from psycopg import connect", "getattr(tx, 'exec_driver_sql')", "from sqlalchemy import create_engine"],
)  # fmt: skip
def test_the_lint_sees(code: str) -> None:
    assert raw_uses(ast.parse(code))


@pytest.mark.parametrize("code", ["guard.Token('x')", "from archive.db.guard import Token as T\nT('x')", "archive.db.guard.Token('x')"])
def test_the_lint_sees_tokens(code: str) -> None:
    assert token_calls(ast.parse(code)) == 1
