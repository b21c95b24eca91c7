"""`archive up`, `init`, `serve` and `db upgrade`: bring an archive into being and serve it."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archive.cli import config_file, output
from archive.cli.main import Command, Group
from archive.cli.session import Session, console, password_from
from archive.errors import InvalidRequest

if TYPE_CHECKING:
    from archive.config import Config
    from archive.serve.state import Status

LOG = logging.getLogger("archive.serve")
RECOVERY_KIT = click.option("--recovery-kit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                            help="Write the offline recovery key here; keep it away from this machine.")


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    for command in (up, init, serve, db):
        archive.add_command(command)


@click.command("up", cls=Command)
@click.option("--demo", is_flag=True, help="Load a few synthetic studies.")
@click.option("--lan", is_flag=False, flag_value="auto", default=None, metavar="[ADDRESS]",
              help="Be reachable for others on the network, at ADDRESS or this machine's own.")
@RECOVERY_KIT
@click.pass_obj
def up(session: Session, demo: bool, lan: str | None, recovery_kit: Path | None) -> None:
    """Initialise when needed, migrate, then serve until SIGINT or SIGTERM."""
    from archive.services import setup

    config_file.write_first(session.config_path)
    if lan is not None:
        config_file.open_to_network(session.config_path, _address(lan))
    config = session.config
    made = None
    if setup.is_initialised(config):
        _migrate(session)
    else:
        made = setup.initialise(config, admin="admin", recovery_kit=recovery_kit)
    owners = [made.admin] if made is not None else []

    def first(node: Any) -> list[str]:
        known = [one["name"] for one in node.accounts.list_users(console(node)) if "owner" in one["roles"]] if made is None else []
        if demo:
            _load_demo(session, node)
        return known

    _serve(session, config, lambda status: _welcome(config, status, owners[:1], reachable=lan is not None), first, owners.extend)


@click.command("init", cls=Command)
@click.option("--admin", default="admin", show_default=True, metavar="NAME", help="The first user; gets the role owner.")
@click.option("--admin-password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Its password; else one is made and put into storage/first-password.")
@RECOVERY_KIT
@click.pass_obj
def init(session: Session, admin: str, admin_password_file: Path | None, recovery_kit: Path | None) -> None:
    """Write configuration, keys, certificates and databases; a configuration that is there is kept."""
    from archive.services import setup

    written = config_file.write_first(session.config_path)
    config = session.config
    password = password_from(admin_password_file, "") if admin_password_file is not None else None
    made = setup.initialise(config, admin=admin, password=password, recovery_kit=recovery_kit)
    lines = [f"configuration   {session.config_path}{'' if written else ' (kept)'}", f"storage         {config.storage_dir}",
             f"first user      {made.admin}"]
    if made.first_password is not None:
        lines.append(f"first password  in {made.first_password}")
    lines.append(f"recovery kit    {made.recovery_kit}" if made.recovery_kit is not None
                 else "recovery kit    none yet: archive key slot add --recovery-kit FILE")
    lines.append(f"CA certificate  {config.tls_dir / 'ca.pem'}")
    lines.append("next            archive serve")
    answer = {
        "config": str(session.config_path), "storage": str(config.storage_dir), "admin": made.admin,
        "ca": str(config.tls_dir / "ca.pem"), "first_password": _path(made.first_password),
        "recovery_kit": _path(made.recovery_kit),
    }
    session.answer(answer, "\n".join(lines))


@click.command("serve", cls=Command)
@click.pass_obj
def serve(session: Session) -> None:
    """Serve an initialised archive until SIGINT or SIGTERM; prints READY once every listener accepts."""
    _serve(session, session.config, lambda _status: None, lambda _node: None, lambda _answer: None)


@click.group("db", cls=Group)
def db() -> None:
    """The databases of this archive."""


@db.command("upgrade")
@click.pass_obj
def upgrade(session: Session) -> None:
    """Bring the databases to this release's schema; stop the archive first."""
    _migrate(session)
    session.answer({"upgraded": True}, "the databases have this release's schema")


def _migrate(session: Session) -> None:
    from archive.serve.state import RunLock
    from archive.services import setup

    config = session.config
    lock = RunLock(config)  # never under a serving archive
    try:
        setup.make_databases(config, session.opened())
    finally:
        lock.release()


def _serve(
    session: Session, config: Config, tell: Callable[[Status], None], first: Callable[[Any], Any], told: Callable[[Any], None]
) -> None:
    from archive.serve import logs, start

    logs.configure("serve")

    def ready(status: Status) -> None:
        if status.read_only:
            with suppress(OSError):  # 'archive status' says it too
                print(f"archive: read-only: {status.read_only}\n  what to do: run 'archive doctor'", file=sys.stderr)
        try:
            if session.as_json:
                print(output.to_json(status))
            else:
                tell(status)
            print("READY", flush=True)
        except OSError as error:  # whoever started it reads no more, or the file it writes to is on a full disk
            LOG.warning("that the archive is ready could not be printed", extra={"error": type(error).__name__})
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    start.serve(config, session.opened, on_ready=ready, first=first, told=told)


def _load_demo(session: Session, node: Any) -> None:
    from archive.services import demo
    from archive.services.store import Source

    subject = console(node)
    with output.progress(quiet=session.as_json) as track:
        demo.load(lambda: node.store.open(subject, "clinical", Source("import")), node.keyring.archive_uuid,
                  lambda done, total: track("drawing demo studies", done, total))


def _welcome(config: Config, status: Status, owners: Sequence[str], *, reachable: bool) -> None:
    """Say where to sign in and what to enter at a modality."""
    first = config.storage_dir / "first-password"
    lines = ["", "Strongroom is up.", "", f"  sign in           {status.http.public_url}"]
    lines += [f"  first user        {name}" for name in owners]
    if first.exists():
        lines.append(f"  first password    in {first}")
    lines.append(f"  CA certificate    {config.tls_dir / 'ca.pem'}  (the browser trusts the address once it trusts this)")
    for name, address in (("DICOM over TLS", status.dimse_tls), ("DICOM plain", status.dimse_plain)):
        if address is not None:
            lines.append(f"  {name:<16}  {config.dimse.ae_title}@{address.host}:{address.port}")
    if reachable and status.dimse_tls is not None:
        lines += [
            "", "At the modality, enter:", f"  called AE title   {config.dimse.ae_title}",
            f"  address           {status.dimse_tls.host}",
            f"  port              {status.dimse_tls.port} (TLS with client certificate)",
            "  its key and certificate:  archive peer add NAME --aet AETITLE --issue DIR",
        ]
    lines += ["", "Ctrl-C drains and stops.", ""]
    print("\n".join(lines))


def _address(lan: str) -> str:
    """Return the address of --lan.

    Raises:
        InvalidRequest: not an address or name.
    """
    if lan == "auto":
        return config_file.own_address()
    try:
        return str(ipaddress.ip_address(lan.strip("[]")))
    except ValueError:
        if lan and all(part.replace("-", "").isalnum() for part in lan.split(".")):
            return lan
    message = f"--lan takes an address or host name of this machine, not {lan!r}"
    raise InvalidRequest(message, remedy="for example: archive up --lan 192.168.1.20")


def _path(path: Path | None) -> str | None:
    return str(path) if path is not None else None

