"""Tables of the configuration file about what others do: tell people, keep the log, sign people in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from archive.errors import ConfigurationError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
OtherPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
"""Somebody else's."""
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Positive = Annotated[int, msgspec.Meta(gt=0, le=1_000_000_000)]
Bytes = Annotated[int, msgspec.Meta(gt=0, le=1 << 50)]
Span = Annotated[int, msgspec.Meta(gt=0, le=1_000_000)]
MailAddress = Annotated[str, msgspec.Meta(pattern="@", max_length=254)]
AttributeName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.;-]*$", max_length=200)]
Filled = Annotated[str, msgspec.Meta(min_length=1)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


_FORMS = {
    "storage.reserve": 'it takes a part of the disk below 100% ("5%"), or an amount ("20GiB")',
    "alerts.working_hours": 'it takes a beginning and an end ("07:00-19:00")',
    "policy.longest_share": 'it takes hours, days or weeks ("36h", "90d", "12w")',
    "dimse.ae_title": "it takes up to 16 characters of ASCII without a backslash, not spaces alone",
    "dimse.aliases": "each takes up to 16 characters of ASCII without a backslash, not spaces alone",
    "alerts.mail_to": 'it takes addresses (["it@clinic.example"])',
    "witness.mail_to": 'it takes addresses (["it@clinic.example"])',
    "identity.issuer": "it takes up to 64 characters without a backslash",
}
"""What keys take whose bounds are a pattern, which says little to people."""
_AT = re.compile(r" - at `(?:key` in `)?\$\.([a-z_.]+)")


def what_is_taken(fault: str) -> str:
    """Return what to do about a fault that msgspec tells of."""
    found = _AT.search(fault)
    return _FORMS.get(found[1] if found else "", "config.example.toml shows every key and what it takes")


def is_address(text: str, *schemes: str) -> bool:
    """Whether that is a URL with one of the schemes, a host, at most a port and a path besides."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    known = parts.scheme in schemes and bool(parts.hostname) and port != 0 and "@" not in parts.netloc
    return known and not parts.query and not parts.fragment and " " not in text


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


def require_printed(section: Section) -> None:
    """Refuse a text with a line break or another control character in it, of this table or one inside: paths, headers, messages hold none.

    Raises:
        ConfigurationError.
    """
    for key, text in _texts(section):
        if _CONTROL.search(text) and key not in {"base", "path"}:  # where the file itself lies
            raise ConfigurationError(f"{key} holds a line break or another control character", remedy="write it on one line, as it is read")


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Section):
        for name in value.__struct_fields__:
            yield from _texts(getattr(value, name), f"{key}.{name}" if key else name)
    elif isinstance(value, (tuple, dict)):
        for one in value.items() if isinstance(value, dict) else value:
            yield from _texts(one, key)


class Alerts(Section, frozen=True):
    """[alerts]: what is worth telling of the audit log, and to whom."""

    enabled: bool = True
    without: tuple[str, ...] = ()
    studies_an_hour: Positive = 30
    exports_a_day: Positive = 20
    refused_in_ten_minutes: Positive = 20
    accounts_from_one_network: Positive = 5
    working_hours: Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-4]):[0-5]\d-([01]\d|2[0-4]):[0-5]\d$")] = "07:00-19:00"
    working_days: tuple[Annotated[int, msgspec.Meta(ge=1, le=7)], ...] = (1, 2, 3, 4, 5)
    mail_to: tuple[MailAddress, ...] = ()
    mail_from: str = ""
    smtp_host: str = ""
    smtp_port: OtherPort = 587
    smtp_tls: Literal["starttls", "tls", "off"] = "starttls"
    smtp_ca_file: str = ""
    smtp_user: str = ""
    smtp_password_file: str = ""
    geoip_file: str = ""
    watched_patients: str = ""
    webhook_url: str = ""
    webhook_secret_file: str = ""

    def working(self, weekday: int, minute: int) -> bool:
        """Whether somebody works then: `weekday` 0 is Monday, `minute` counts from midnight."""
        first, last = (60 * int(part[:2]) + int(part[3:]) for part in self.working_hours.split("-"))
        return weekday + 1 in self.working_days and first <= minute < last

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError.
        """
        first, last = self.working_hours.split("-")
        if not first < last <= "24:00":
            raise ConfigurationError("alerts.working_hours do not end after they begin, on one day", remedy='write "07:00-19:00"')
        if self.smtp_host and "@" not in self.mail_from:
            raise ConfigurationError("alerts.mail_from is no address, but alerts.smtp_host is set", remedy="name where mail comes from")
        if bool(self.smtp_user) != bool(self.smtp_password_file):
            raise ConfigurationError(
                "alerts.smtp_user and alerts.smtp_password_file belong together", remedy="name both, or neither",
            )
        if self.webhook_url and not is_address(self.webhook_url.partition("?")[0], "https", "http"):
            raise ConfigurationError("alerts.webhook_url is not an http(s) address", remedy="write it as https://host/path")


class Syslog(Section, frozen=True):
    """[syslog]: a collector of audit messages (PS3.15 A.6), over TLS."""

    host: str = ""
    port: OtherPort = 6514
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    source_id: str = ""
    site: str = ""
    patients: bool = True
    history: bool = False

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError.
        """
        if bool(self.certificate_file) != bool(self.key_file):
            raise ConfigurationError("syslog.certificate_file and syslog.key_file belong together", remedy="name both, or neither")


class Oidc(Section, frozen=True):
    """[oidc]: an OpenID provider that signs users in; users, roles and grants stay here."""

    issuer: str = ""
    client_id: str = ""
    client_secret_file: str = ""
    label: Annotated[str, msgspec.Meta(max_length=60)] = ""
    scopes: tuple[Annotated[str, msgspec.Meta(pattern="^[!-~]+$")], ...] = ("openid", "profile", "email")
    bind_by: Literal["", "email", "preferred_username"] = ""
    groups_claim: str = ""
    groups: dict[Filled, Filled] = {}
    mfa_amr: tuple[str, ...] = ()
    mfa_acr: tuple[str, ...] = ()
    ca_file: str = ""

    @property
    def there(self) -> bool:
        """Whether it is used at all."""
        return bool(self.issuer)

    def check(self) -> None:
        """Refuse what cannot work, or would not be safe.

        Raises:
            ConfigurationError.
        """
        if not self.there:
            return
        here = is_address(self.issuer, "http") and urlsplit(self.issuer).hostname in _LOOPBACK
        if not (here or is_address(self.issuer, "https")):
            raise ConfigurationError("oidc.issuer is not an https address", remedy="write it as the provider does, https://host/path")
        if not self.client_id:
            raise ConfigurationError("oidc.client_id is empty", remedy="register the archive at the provider, and write the id it gave")
        if "openid" not in self.scopes:
            raise ConfigurationError("oidc.scopes lacks openid", remedy='write scopes = ["openid", …]')
        if self.groups and not self.groups_claim:
            raise ConfigurationError("oidc.groups is set, but no oidc.groups_claim", remedy="name the claim the groups come in")


class Ldap(Section, frozen=True):
    """[ldap]: a directory whose passwords users sign in with; users, roles and grants stay here."""

    url: str = ""
    starttls: bool = False
    ca_file: str = ""
    base: str = ""
    login_attribute: AttributeName = "uid"
    object_class: AttributeName = "person"
    user_dn: str = ""
    bind_dn: str = ""
    bind_password_file: str = ""
    bind_by: Literal["", "name"] = ""
    group_attribute: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9.;-]*)?$", max_length=200)] = ""
    group_base: str = ""
    groups: dict[Filled, Filled] = {}
    timeout_s: Annotated[int, msgspec.Meta(gt=0, le=60)] = 5

    @property
    def there(self) -> bool:
        """Whether it is used at all."""
        return bool(self.url)

    def check(self) -> None:
        """Refuse what cannot work, or would send passwords in the clear.

        Raises:
            ConfigurationError.
        """
        if not self.there:
            return
        if not is_address(self.url, "ldap", "ldaps") or (parts := urlsplit(self.url)).path.strip("/"):
            raise ConfigurationError("ldap.url is not a directory's address", remedy="write it as ldaps://host or ldaps://host:port")
        if parts.scheme == "ldap" and not self.starttls and parts.hostname not in _LOOPBACK:
            raise ConfigurationError("ldap.url would send passwords in the clear", remedy="use ldaps://, or set ldap.starttls = true")
        if bool(self.user_dn) == bool(self.bind_dn):
            raise ConfigurationError(
                "ldap needs ldap.user_dn or ldap.bind_dn, and not both",
                remedy="name the account that looks users up, or how a name makes a distinguished name",
            )
        if self.user_dn and self.user_dn.count("{name}") != 1:
            raise ConfigurationError("ldap.user_dn does not hold {name} once", remedy='write it as "uid={name},ou=people,dc=clinic"')
        if self.bind_dn and not (self.base and self.bind_password_file):
            raise ConfigurationError(
                "ldap.bind_dn is set, but not ldap.base and ldap.bind_password_file",
                remedy="say where users are looked up, and which file holds that account's password",
            )
        if self.groups and not (self.group_attribute or self.group_base):
            raise ConfigurationError(
                "ldap.groups is set, but neither ldap.group_attribute nor ldap.group_base",
                remedy='write group_attribute = "memberOf", or where groups are looked up',
            )
