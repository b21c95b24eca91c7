"""What cannot work, or would do harm, is refused with the key that says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.config import Config, parse
from archive.errors import ConfigurationError
from archive.sections import Section


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


def keys(section: Section, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the file with its default."""
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from keys(value, f"{above}{name}.")
        elif above:
            yield f"{above}{name}", value


def refused(key: str, value: Any, **beside: Any) -> str:
    *sections, name = key.split(".")
    raw: dict[str, Any] = {}
    table = raw
    for section in sections:
        table = table.setdefault(section, {})
    table.update(beside, **{name: value})
    with pytest.raises(ConfigurationError) as told:
        parse(raw, Path("config.toml"))
    assert key in told.value.message, told.value.message
    assert told.value.remedy
    return f"{told.value.message} {told.value.remedy}"


ODD: dict[type, list[Any]] = {
    bool: [1, "yes"], int: [-1, 10**30, 1.5, True, "5"], str: [1, "a\nb", "a\0b", "a\x7fb"], tuple: ["a", ["a\nb"], [{}], {}],
    dict: [[], {"a": 1}, {"a": "b\nc"}, {"": "a"}, {"a": ""}],
}


@pytest.mark.parametrize(("key", "default"), list(keys(Config())), ids=lambda one: one if isinstance(one, str) else "")
def test_no_key_takes_what_is_not_of_its_kind(key: str, default: Any) -> None:
    for value in ODD[type(default)]:
        refused(key, value)


@pytest.mark.parametrize(("key", "values"), [
    ("archive.name", ["", "x" * 201]), ("archive.storage", [""]),
    ("archive.public_url", ["", "clinic", "https://", "https://host:99999", "https://host:0", "https://a b", "https://u:p@host", "ftp://host",
                            "https://host/?a=b", "https://host/#a", "https://:8443"]),
    ("http.host", [""]), ("http.port", [65536, -1]), ("http.workers", [10_000]), ("http.threads", [0, 100_000]),
    ("http.max_request_bytes", [0]),
    ("http.cors_origins", [["*"], ["viewer.example"], ["https://viewer.example/"], ["https://viewer.example/path"], ["null"], [""]]),
    ("viewer.port", [65536]), ("viewer.public_url", ["https://", "viewer", "https://host:99999"]),
    ("events.port", [65536]), ("events.public_url", ["wss://", "https://host", "wss://host:99999"]), ("events.max_connections", [0, 10**9]),
    ("webhooks.networks", [["banana"], [""]]), ("alerts.studies_an_hour", [0]), ("alerts.working_days", [[0], [8]]),
    ("alerts.working_hours", ["", "7-19", "19:00-07:00", "07:00-07:00", "07:00-24:30", "25:00-26:00"]),
    ("alerts.mail_to", [["nobody"], [""]]), ("alerts.smtp_port", [0, 65536]), ("alerts.smtp_tls", ["maybe"]),
    ("alerts.webhook_url", ["clinic", "https://", "ftp://host/a", "https://host:99999/"]),
    ("syslog.port", [0, 65536]), ("dimse.ae_title", ["", " ", "A" * 17, "A\\B", "\u00c4"]), ("dimse.aliases", [["  "], [""]]),
    ("dimse.workers", [10_000]), ("dimse.max_pdu_bytes", [1000, 1 << 30]), ("dimse.max_dataset_bytes", [0]),
    ("dimse.max_associations", [0, 10**6]), ("dimse.max_associations_per_peer", [0]), ("dimse.handshake_timeout_s", [0]),
    ("dimse.receiver", ["other"]), ("dimse.tls.host", [""]), ("dimse.tls.port", [65536]), ("dimse.plain.host", [""]),
    ("dimse.plain.port", [65536]), ("dimse.plain.networks", [["10.1.0.0/33"]]),
    ("storage.reserve", ["500%", "100%", "-5%", "5 %", "", "%", "5kB", "1e9", "nan%", "5GiB%"]), ("storage.segment_bytes", [0, 1 << 40]),
    ("storage.purge_after", [10**6]), ("identity.issuer", ["x" * 65, "a\\b"]), ("limits.inflated_bytes", [0]),
    ("limits.nesting", [0, 10**6]),
    ("limits.elements", [0]), ("signin.idle_minutes", [0]), ("signin.sessions", [0]), ("ledger.heartbeat_minutes", [0]),
    ("witness.every_minutes", [0]), ("witness.mail_to", [["nobody"]]), ("backup.warn_days", [0]), ("policy.break_glass_minutes", [4, 481]),
    ("policy.longest_share", ["", "0d", "90", "90m", "99999d"]), ("ldap.timeout_s", [0, 61]), ("ldap.login_attribute", ["", "a b", "*"]),
    ("ldap.object_class", ["", ")("]), ("ldap.group_attribute", ["a b"]), ("oidc.scopes", [["openid", ""], ["openid profile"]]),
    ("oidc.issuer", ["https://", "idp", "https://host:99999", "http://idp.example"]),
    ("ldap.url", ["ldaps://", "ldaps://host:99999", "ldaps://host:0", "dc"]),
])
def test_values_that_make_no_sense_are_refused(key: str, values: list[Any]) -> None:
    for value in values:
        refused(key, value)


def test_it_is_told_what_would_be_taken_instead() -> None:
    assert "below 100%" in refused("storage.reserve", "500%")
    assert "07:00-19:00" in refused("alerts.working_hours", "always")
    assert "not spaces alone" in refused("dimse.aliases", ["  "])
    assert "<= 65535" in refused("http.port", 65536)
    assert "config.example.toml" in refused("http.port", "all")


def test_what_belongs_together_is_asked_for_together() -> None:
    refused("alerts.mail_from", "", smtp_host="mail")
    for one, other in (("smtp_user", "smtp_password_file"), ("smtp_password_file", "smtp_user")):
        assert f"alerts.{other}" in refused(f"alerts.{one}", "a")
    for one, other in (("certificate_file", "key_file"), ("key_file", "certificate_file")):
        assert f"syslog.{other}" in refused(f"syslog.{one}", "a")


@pytest.mark.parametrize("raw", [
    {"storage": {"reserve": value}} for value in ("0%", "0B", "0", "5%", "99.999%", "2.5GiB", "1000000")
] + [
    {"archive": {"public_url": value}} for value in ("http://[::1]:80", "https://pacs.clinic.example/archive", "https://klinik-m\u00fcller.de")
] + [
    {"alerts": {"working_hours": "00:00-24:00"}}, {"http": {"cors_origins": ["http://localhost:3000", "https://viewer.example"]}},
    {"dimse": {"ae_title": " A B ", "aliases": ["X"]}}, {"archive": {"name": "\u653e\u5c04\u7dda\u3000\u79d1"}},
    {"alerts": {"webhook_url": "https://host/a?token=b"}},
])
def test_what_makes_sense_is_taken(raw: dict[str, Any]) -> None:
    parse(raw, Path("config\nof mine.toml"))
