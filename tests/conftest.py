"""Fixtures every test may use: the corpus, real peers, databases."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from archive.access import passwords
from archive.db.engine import Database
from archive.node import Node
from tests import databases
from tests.dimse import library
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
REQUIRE_ALL = os.environ.get("ARCHIVE_TEST_REQUIRE_ALL") == "1"
if sys.dont_write_bytecode:  # hundreds of processes import the archive: each would compile it anew
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
databases.compile_once()
COSTLY = {name: getattr(passwords, name) for name in ("MEMORY_KIB", "ITERATIONS")}
passwords.MEMORY_KIB, passwords.ITERATIONS = 64, 1  # of thousands of passwords, in this process; tests about them ask for `costly`
# A slow machine is no fault of what is tested, and a run says of a change what the run before it said of its parent; other examples
# each time: --hypothesis-profile=explore.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", settings.get_profile("explore"), derandomize=True)
settings.load_profile("suite")
library.guard()
THROWN_AWAY = "-c fsync=off -c full_page_writes=off -c autovacuum=off"  # a database that lives as long as the run
EXTRA_PATH = ("/usr/sbin", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/15/bin")


def pytest_collection(session: pytest.Session) -> None:
    """Import the modules of a whole run beginning at another place in each worker: what one has rewritten the others read."""
    gc.disable()  # until everything is imported, of which nothing is garbage
    worker: dict[str, Any] = getattr(session.config, "workerinput", {})
    if worker and session.config.args == session.config.getini("testpaths"):
        paths = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py") if "node_modules" not in path.parts)
        modules = [".".join(path.with_suffix("").parts) for path in paths]
        first = len(modules) * int(worker["workerid"].removeprefix("gw")) // int(worker["workercount"])
        for module in [*modules[first:], *modules[:first]]:
            with suppress(Exception, pytest.skip.Exception):  # told of when it is collected
                importlib.import_module(module)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Close the archives of fixtures, which nobody opens again, without a last signed head and snapshot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "_last_checkpoint", lambda _: None)
        yield


def pytest_collection_finish() -> None:
    """Look for garbage seldom, never among what was imported: a process that has everything in it would do little else."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)
    gc.enable()


def absent(what: str) -> None:
    """Skip because a peer is missing; fail instead where everything was promised."""
    if REQUIRE_ALL:
        pytest.fail(f"{what} is missing, and ARCHIVE_TEST_REQUIRE_ALL=1 asks for everything")
    pytest.skip(f"{what} is not installed")


def find_program(name: str) -> str | None:
    """Return the path of an installed program, also where Debian keeps servers."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *EXTRA_PATH]))


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], str]:
    """`program("storescu", "dcmtk")`: the path of a real peer's program, else skip naming its package."""

    def find(name: str, package: str) -> str:
        path = find_program(name)
        if path is None:
            absent(package)
        assert path is not None
        return path

    return find


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real and hostile DICOM files beside the checkout; never committed."""
    path = Path(os.environ.get("ARCHIVE_TEST_CORPUS", ROOT.parent / "shared" / "corpus"))
    if not path.is_dir():
        pytest.skip("the DICOM corpus is not beside the checkout (set ARCHIVE_TEST_CORPUS)")
    return path


@pytest.fixture
def now() -> datetime:
    """A fixed aware instant."""
    return datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Passwords cost what they cost in service."""
    for name, value in COSTLY.items():
        monkeypatch.setattr(passwords, name, value)
    passwords._nobody.cache_clear()
    yield
    passwords._nobody.cache_clear()


@contextmanager
def own_postgresql(within: Path | None = None) -> Iterator[str]:
    """A real PostgreSQL server, its files in a folder that others may enter; yields a URL whose last part is the database to use."""
    initdb = find_program("initdb")
    if initdb is None:
        absent("postgresql")
    assert initdb is not None
    bin_dir = Path(initdb).parent
    # Short path: a socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="srpg", dir=within) as folder:
        base = Path(folder)
        as_root = os.geteuid() == 0
        if as_root:
            shutil.chown(base, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"] if as_root else []

        def run(*argv: str) -> None:
            subprocess.run([*prefix, *argv], check=True, capture_output=True, cwd="/", timeout=120)

        settings = ("-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        run(str(bin_dir / "initdb"), "-D", str(base / "data"), *settings)
        port = free_port()
        options = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={base} -c max_connections=200 {THROWN_AWAY}"
        run(str(bin_dir / "pg_ctl"), "-D", str(base / "data"), "-w", "-l", str(base / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/"
        finally:
            run(str(bin_dir / "pg_ctl"), "-D", str(base / "data"), "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The server of this test run."""
    with own_postgresql() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """An empty PostgreSQL database for one test."""
    import secrets

    import psycopg

    name = "t" + secrets.token_hex(6)
    admin = postgresql_server.replace("+psycopg", "") + "postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    try:
        yield postgresql_server + name
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def emptied_databases(postgresql_server: str) -> databases.Emptied:
    """PostgreSQL databases with every table, given out one after the other."""
    return databases.Emptied(postgresql_server)


@pytest.fixture
def postgresql_index(emptied_databases: databases.Emptied) -> Iterator[str]:
    """A PostgreSQL database with every table, all of them empty."""
    with emptied_databases.one() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The index database with every table, on each engine in turn."""
    if request.param == "sqlite":
        with closing(databases.embedded(tmp_path)) as opened:
            yield opened
    else:
        with closing(Database(request.getfixturevalue("postgresql_index"))) as opened:
            yield opened
