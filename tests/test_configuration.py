"""What cannot work, or would do harm, is refused with the key that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archive.config import parse
from archive.errors import ConfigurationError


@pytest.mark.parametrize("url", [
    "sqlite:///index.db", "sqlite:////var/lib/index.db", "sqlite://", "mysql://user@host/base", "postgres://host/base", "index.db",
    "postgresql+psycopg2://user@host/base", "postgresql+psycopg://user@host:port/base",
])
def test_an_index_elsewhere_is_on_postgresql_alone(url: str) -> None:
    """A file of SQLite's named so would hold patients' names as they are."""
    with pytest.raises(ConfigurationError, match=r"^database\.url") as refused:
        parse({"database": {"url": url}}, Path("config.toml"))
    assert "postgresql+psycopg://" in refused.value.remedy


@pytest.mark.parametrize("url", [
    "", "postgresql+psycopg://user:p%40ss@host:5433/base", "postgresql://host/base", "postgresql+psycopg:///base?host=/run/postgresql",
    "postgresql+psycopg://user@[::1]/base",
])
def test_addresses_of_postgresql_are_taken(url: str) -> None:
    assert parse({"database": {"url": url}}, Path("config.toml")).database.url == url


def test_a_password_in_the_address_is_not_told() -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse({"database": {"url": "mysql://user:violet@host/base"}}, Path("config.toml"))
    assert "violet" not in f"{refused.value.message} {refused.value.remedy}"


@pytest.mark.parametrize("networks", [["banana"], ["10.1.0.0/16", "10.1.0.0/33"]])
def test_the_plain_listener_s_networks_are_networks(networks: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^dimse\.plain\.networks: "):
        parse({"dimse": {"plain": {"networks": networks}}}, Path("config.toml"))


@pytest.mark.parametrize("raw", [
    {"signin": {"idle_minutes": 10**12}}, {"signin": {"absolute_hours": 10**12}}, {"signin": {"step_up_minutes": 10**12}},
    {"backup": {"warn_days": 10**12}}, {"ledger": {"heartbeat_minutes": 10**15}}, {"witness": {"every_minutes": 10**15}},
    {"witness": {"silent_hours": 10**15}}, {"dimse": {"idle_timeout_s": 10**30}}, {"dimse": {"request_timeout_s": 10**30}},
    {"dimse": {"handshake_timeout_s": 10**30}},
])
def test_no_time_is_longer_than_clocks_count(raw: dict[str, Any]) -> None:
    ((section, settings),) = raw.items()
    with pytest.raises(ConfigurationError, match=rf"{section}\.{next(iter(settings))}"):
        parse(raw, Path("config.toml"))
