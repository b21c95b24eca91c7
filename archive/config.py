"""The configuration: one TOML file into frozen, typed records.

Unknown keys are errors that name the key; relative paths are relative to the file; secrets are paths of files, never values.
Every key stands in config.example.toml with its default and a line of why.
"""

from __future__ import annotations

import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from archive import sections
from archive.errors import ConfigurationError
from archive.sections import Alerts, Bytes, Host, Ldap, MailAddress, Oidc, Port, Positive, Section, Span, Syslog

AeTitle = Annotated[str, msgspec.Meta(min_length=1, max_length=16, pattern=r"^ *[!-\[\]-~][ -\[\]-~]*$")]
Associations = Annotated[int, msgspec.Meta(gt=0, le=10_000)]
Processes = Annotated[int, msgspec.Meta(ge=0, le=256)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Archive(Section, frozen=True):
    """[archive]: name, data folder, address as clients see it."""

    name: Text = "clinic"
    storage: Annotated[str, msgspec.Meta(min_length=1)] = "storage"
    public_url: str = "https://127.0.0.1:8443"


class Http(Section, frozen=True):
    """[http]: the web listener."""

    host: Host = "127.0.0.1"
    port: Port = 8443
    tls: Literal["built-in", "files", "off"] = "built-in"
    certificate: str = ""
    key: str = ""
    workers: Processes = 0
    threads: Annotated[int, msgspec.Meta(gt=0, le=1024)] = 8
    max_request_bytes: Bytes = 8 << 30
    requests_per_second: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 500
    metrics_token_file: str = ""
    cors_origins: tuple[str, ...] = ()


class Viewer(Section, frozen=True):
    """[viewer]: where a viewer that needs an origin of its own is served, once one is installed."""

    port: Port = 8444
    public_url: str = ""


class Events(Section, frozen=True):
    """[events]: the WebSockets that tell subscribers of the worklist what happens."""

    enabled: bool = False
    port: Port = 8445
    public_url: str = ""
    max_connections: Annotated[int, msgspec.Meta(gt=0, le=50_000)] = 200


class Webhooks(Section, frozen=True):
    """[webhooks]: where webhooks may lead besides global addresses."""

    networks: tuple[str, ...] = ()
    ca_file: str = ""


class DimseTls(Section, frozen=True):
    """[dimse.tls]: the DIMSE listener over mutual TLS."""

    enabled: bool = True
    host: Host = "127.0.0.1"
    port: Port = 2762


class DimsePlain(Section, frozen=True):
    """[dimse.plain]: for modalities without TLS, bound to networks."""

    enabled: bool = False
    host: Host = "127.0.0.1"
    port: Port = 11112
    networks: tuple[str, ...] = ("127.0.0.0/8",)


class Dimse(Section, frozen=True):
    """[dimse]: AE title and limits of every association."""

    ae_title: AeTitle = "STRONGROOM"
    aliases: tuple[AeTitle, ...] = ()
    called_ae_strict: bool = False
    workers: Processes = 0
    max_pdu_bytes: Annotated[int, msgspec.Meta(ge=16384, le=1 << 20)] = 131072
    max_dataset_bytes: Bytes = 4 << 30
    max_associations: Associations = 100
    max_associations_per_peer: Associations = 25
    handshake_timeout_s: Span = 5
    request_timeout_s: Span = 10
    idle_timeout_s: Span = 60
    private_sop_classes: bool = False
    receiver: Literal["own", "pynetdicom"] = "own"
    tls: DimseTls = DimseTls()
    plain: DimsePlain = DimsePlain()


class DatabaseSection(Section, frozen=True):
    """[database]: empty url means encrypted SQLite in storage."""

    url: str = ""


class Objects(Section, frozen=True):
    """[objects]: empty url means segments in storage."""

    url: str = ""


class Keys(Section, frozen=True):
    """[keys]: where the keyring and its key file lie; empty means <storage>/keys."""

    directory: str = ""
    key_file: str = ""


class Storage(Section, frozen=True):
    """[storage]: how segments are written and when stores are refused."""

    reserve: Annotated[str, msgspec.Meta(pattern=r"^(\d{1,2}(\.\d{1,6})?%|\d{1,15}(\.\d{1,6})?(B|KiB|MiB|GiB|TiB)?)$")] = "5%"
    segment_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 32)] = 256 << 20
    direct_io: bool = True
    picture_cache_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 2 << 30
    purge_after: Annotated[int, msgspec.Meta(ge=0, le=36500)] = 0
    """Days after which what was rejected is purged; 0: never."""


class Identity(Section, frozen=True):
    """[identity]: how patients are told apart."""

    issuer: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[^\\]*$")] = ""


class Limits(Section, frozen=True):
    """[limits]: bounds on what one data set may cost."""

    inflated_bytes: Bytes = 64 << 20
    nesting: Annotated[int, msgspec.Meta(ge=1, le=256)] = 64
    elements: Positive = 1_000_000


class Signin(Section, frozen=True):
    """[signin]: browser sessions."""

    idle_minutes: Span = 15
    absolute_hours: Span = 12
    sessions: Positive = 20
    step_up_minutes: Span = 5


class Ledger(Section, frozen=True):
    """[ledger]: how often checkpoints are signed when nothing happens."""

    heartbeat_minutes: Span = 60


class WitnessAt(Section, frozen=True):
    """[[witness.known]]: a witness outside, and the key it signs with."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    url: Text
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=4000)]


class Witness(Section, frozen=True):
    """[witness]: who outside remembers how far the ledger has come."""

    every_minutes: Span = 5
    silent_hours: Span = 24
    ca_file: str = ""
    mail_to: tuple[MailAddress, ...] = ()
    known: tuple[WitnessAt, ...] = ()


class Backup(Section, frozen=True):
    """[backup]: when a backup counts as old."""

    warn_days: Span = 7


class Policy(Section, frozen=True):
    """[policy]: separation of duties."""

    two_person: bool = False
    break_glass_minutes: Annotated[int, msgspec.Meta(ge=5, le=480)] = 60
    longest_share: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,3}[hdw]$")] = "90d"


class Config(Section, frozen=True):
    """The whole file; `base` is the folder that relative paths start from."""

    archive: Archive = Archive()
    http: Http = Http()
    viewer: Viewer = Viewer()
    events: Events = Events()
    webhooks: Webhooks = Webhooks()
    alerts: Alerts = Alerts()
    syslog: Syslog = Syslog()
    dimse: Dimse = Dimse()
    database: DatabaseSection = DatabaseSection()
    objects: Objects = Objects()
    keys: Keys = Keys()
    storage: Storage = Storage()
    identity: Identity = Identity()
    limits: Limits = Limits()
    signin: Signin = Signin()
    oidc: Oidc = Oidc()
    ldap: Ldap = Ldap()
    ledger: Ledger = Ledger()
    witness: Witness = Witness()
    backup: Backup = Backup()
    policy: Policy = Policy()
    base: str = ""
    path: str = ""

    def resolve(self, path: str) -> Path:
        """Return `path` absolute, relative ones starting at the configuration file's folder."""
        return (Path(self.base) / path).resolve() if self.base else Path(path).resolve()

    @property
    def storage_dir(self) -> Path:
        """The data folder."""
        return self.resolve(self.archive.storage)

    @property
    def viewer_url(self) -> str:
        """The address of the viewer's origin: as configured, or public_url's host with the viewer's port."""
        if self.viewer.public_url:
            return self.viewer.public_url.rstrip("/")
        parts = urlsplit(self.archive.public_url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}:{self.viewer.port}"

    @property
    def events_url(self) -> str:
        """The address of the WebSockets: as configured, or public_url's host with their port."""
        if self.events.public_url:
            return self.events.public_url.rstrip("/")
        parts = urlsplit(self.archive.public_url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{'ws' if parts.scheme == 'http' else 'wss'}://{host}:{self.events.port}"

    @property
    def keys_dir(self) -> Path:
        """The folder of keyring.json."""
        return self.resolve(self.keys.directory) if self.keys.directory else self.storage_dir / "keys"

    @property
    def key_file(self) -> Path:
        """The file that opens the keyring's first slot."""
        return self.resolve(self.keys.key_file) if self.keys.key_file else self.keys_dir / "root.key"

    @property
    def run_dir(self) -> Path:
        """Locks, sockets and the state of running processes."""
        return self.storage_dir / "run"

    @property
    def tls_dir(self) -> Path:
        """Certificates: ca.pem, server.pem."""
        return self.storage_dir / "tls"

    @property
    def index_path(self) -> Path:
        """The embedded index."""
        return self.storage_dir / "index.db"

    @property
    def keystore_path(self) -> Path:
        """The embedded keystore."""
        return self.storage_dir / "keystore.db"

    @property
    def segments_dir(self) -> Path:
        """Sealed segments."""
        return self.storage_dir / "segments"

    @property
    def cache_dir(self) -> Path:
        """Sealed packs and images that can be made again."""
        return self.storage_dir / "cache"

    @property
    def ledger_dir(self) -> Path:
        """Tiles, entries and checkpoints."""
        return self.storage_dir / "ledger"


def load(path: Path) -> Config:
    """Read one TOML file.

    Raises:
        ConfigurationError: absent, not TOML, an unknown key, or a value of the wrong kind; the message names the key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"there is no configuration at {path}"
        raise ConfigurationError(message, remedy="run 'archive init', or name one with --config") from error
    except OSError as error:
        message = f"the configuration at {path} cannot be read: {error.strerror}"
        raise ConfigurationError(message, remedy="give the archive's user the right to read it") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not TOML: {error}"
        raise ConfigurationError(message, remedy="mend that line; config.example.toml shows the form") from error
    return parse(raw, path)


def parse(raw: dict[str, object], path: Path) -> Config:
    """Turn a parsed table into a Config.

    Raises:
        ConfigurationError: an unknown key or a value of the wrong kind.
    """
    for reserved in ("base", "path"):
        if reserved in raw:
            message = f"{path}: Object contains unknown field `{reserved}` - at `$`"
            raise ConfigurationError(message, remedy="remove that key")
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        message = f"{path}: {error}"
        raise ConfigurationError(message, remedy=sections.what_is_taken(str(error))) from error
    config = msgspec.structs.replace(config, base=str(path.resolve().parent), path=str(path.resolve()))
    _check(config)
    return config


def _check(config: Config) -> None:
    """Refuse combinations that cannot work."""
    sections.require_printed(config)
    for section in (config.alerts, config.syslog, config.oidc, config.ldap):
        section.check()
    if config.http.tls == "files" and not (config.http.certificate and config.http.key):
        raise ConfigurationError(
            'http.tls is "files" but http.certificate or http.key is empty',
            remedy='name both files, or set http.tls = "built-in"',
        )
    if config.objects.url:
        raise ConfigurationError(
            "objects.url is set, but this release keeps segments on disk only",
            remedy="leave objects.url empty",
        )
    _check_addresses(config)
    _check_database(config.database)
    _check_witnesses(config.witness)


def _check_addresses(config: Config) -> None:
    if not sections.is_address(config.archive.public_url, "https", "http"):
        raise ConfigurationError("archive.public_url is not an http(s) address", remedy="write it as https://host:port")
    if config.events.public_url and not sections.is_address(config.events.public_url, "wss", "ws"):
        raise ConfigurationError("events.public_url is not a ws(s) address", remedy="write it as wss://host:port, or leave it empty")
    for key, networks in (("webhooks", config.webhooks.networks), ("dimse.plain", config.dimse.plain.networks)):
        for network in networks:
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise ConfigurationError(f"{key}.networks: {network} is no network", remedy="write it as 10.1.0.0/16") from None
    for origin in config.http.cors_origins:
        if not sections.is_address(origin, "https", "http") or urlsplit(origin).path:
            raise ConfigurationError(f"http.cors_origins: {origin} is no origin", remedy="write it as https://host or https://host:port")
    if config.viewer.public_url and not sections.is_address(config.viewer.public_url, "https", "http"):
        raise ConfigurationError("viewer.public_url is not an http(s) address", remedy="write it as https://host:port, or leave it empty")


def _check_database(database: DatabaseSection) -> None:
    """Any other than PostgreSQL would be a file nobody encrypts, or a driver that is not there; the address may hold a password."""
    try:
        parts = urlsplit(database.url)
        sound = parts.scheme in {"postgresql", "postgresql+psycopg"} and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if database.url and not sound:
        raise ConfigurationError(
            "database.url is not the address of a PostgreSQL database",
            remedy="write it as postgresql+psycopg://user@host/database, or leave it empty: the index is then encrypted in storage",
        )


def _check_witnesses(witness: Witness) -> None:
    if len({one.name for one in witness.known}) != len(witness.known):
        raise ConfigurationError("witness.known: two witnesses have the same name", remedy="give each a name of its own")
    for one in witness.known:
        if not sections.is_address(one.url, "https", "http") or not one.url.isascii():
            raise ConfigurationError(f"witness.known: the url of {one.name} is no address", remedy="write it as http://host:port or https://…")
