"""Tables of the configuration file about what others do: tell people, keep the log, sign people in."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from archive.errors import ConfigurationError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Span = Annotated[int, msgspec.Meta(gt=0, le=1_000_000)]
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


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
    mail_to: tuple[str, ...] = ()
    mail_from: str = ""
    smtp_host: str = ""
    smtp_port: Port = 587
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


class Syslog(Section, frozen=True):
    """[syslog]: a collector of audit messages (PS3.15 A.6), over TLS."""

    host: str = ""
    port: Port = 6514
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    source_id: str = ""
    site: str = ""
    patients: bool = True
    history: bool = False


class Oidc(Section, frozen=True):
    """[oidc]: an OpenID provider that signs users in; users, roles and grants stay here."""

    issuer: str = ""
    client_id: str = ""
    client_secret_file: str = ""
    label: Annotated[str, msgspec.Meta(max_length=60)] = ""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    bind_by: Literal["", "email", "preferred_username"] = ""
    groups_claim: str = ""
    groups: dict[str, str] = {}
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
        parts = urlsplit(self.issuer)
        if parts.query or parts.fragment or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
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
    login_attribute: str = "uid"
    object_class: str = "person"
    user_dn: str = ""
    bind_dn: str = ""
    bind_password_file: str = ""
    bind_by: Literal["", "name"] = ""
    group_attribute: str = ""
    group_base: str = ""
    groups: dict[str, str] = {}
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
        parts = urlsplit(self.url)
        if parts.scheme not in {"ldap", "ldaps"} or not parts.hostname or parts.path.strip("/") or parts.query or "@" in parts.netloc:
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
