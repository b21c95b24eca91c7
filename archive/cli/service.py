"""`archive service install`: a hardened systemd unit for this configuration."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.errors import ConfigurationError

if TYPE_CHECKING:
    from archive.config import Config

NAME = "strongroom.service"
SYSTEM = Path("/etc/systemd/system")


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(service)


@click.group("service", cls=Group)
def service() -> None:
    """Run the archive as a service of this machine."""


@service.command("install")
@click.option("--user", default="", metavar="NAME", help="Whom the service runs as; default: the owner of the storage folder.")
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), default=SYSTEM, show_default=True,
              help="Where the unit goes.")
@click.option("--passphrase-credential", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The file systemd hands the service the keyring's passphrase from; keep it root's alone.")
@click.option("--encrypted", is_flag=True, help="That file was made by `systemd-creds encrypt`.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit instead of installing it.")
@click.pass_obj
def install(
    session: Session, user: str, directory: Path, passphrase_credential: Path | None, encrypted: bool, only_print: bool
) -> None:
    """Write a hardened systemd unit that runs `archive serve` with this configuration."""
    config = session.config
    unit = unit_for(config, user or owner_of(config), credential(passphrase_credential, encrypted=encrypted))
    if only_print:
        session.answer({"unit": unit}, unit.rstrip())
        return
    path = directory / NAME
    try:
        path.write_text(unit, encoding="utf-8")
        path.chmod(0o644)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise ConfigurationError(message, remedy="run it as root, or use --print and install the unit yourself") from error
    lines = [f"wrote {path}"]
    if directory == SYSTEM and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)  # noqa: S607 # systemd's own tool
    lines.append(f"start it now and at every boot: systemctl enable --now {NAME}")
    session.answer({"path": str(path), "unit": unit}, "\n".join(lines))


def owner_of(config: Config) -> str:
    """Return the user who owns the storage folder."""
    if not config.storage_dir.is_dir():
        message = f"there is no archive at {config.storage_dir} yet"
        raise ConfigurationError(message, remedy="run 'archive init' first, as the user the service is to run as")
    uid = config.storage_dir.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def credential(file: Path | None, *, encrypted: bool) -> str:
    """Return the line by which systemd hands over the passphrase (systemd.exec(5)), or nothing."""
    from archive.cli.unlock import CREDENTIAL

    if file is None:
        return ""
    path = str(file.resolve()).replace("%", "%%")
    return f"LoadCredential{'Encrypted' if encrypted else ''}={CREDENTIAL}:{path}\n"


def unit_for(config: Config, user: str, more: str = "") -> str:
    """Return the text of the unit."""
    writable = [config.storage_dir]
    if not config.keys_dir.is_relative_to(config.storage_dir):
        writable.append(config.keys_dir)
    needed = [*writable, Path(config.path), Path(sys.prefix).resolve(), Path(os.path.realpath(sys.executable))]
    private_home = not any(path.is_relative_to("/home") or path.is_relative_to("/root") for path in needed)
    return f"""\
[Unit]
Description=Strongroom, archive for medical images
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
User={user}
ExecStart={_quoted(sys.executable)} -m archive --config {_quoted(config.path)} serve
{more}WorkingDirectory=/
Restart=on-failure
RestartSec=5
TimeoutStopSec=60
KillMode=mixed
UMask=0077
LimitNOFILE=65536
LimitCORE=0
NoNewPrivileges=yes
CapabilityBoundingSet={"CAP_NET_BIND_SERVICE" if _low_port(config) else ""}
AmbientCapabilities={"CAP_NET_BIND_SERVICE" if _low_port(config) else ""}
ProtectSystem=strict
ReadWritePaths={" ".join(_quoted(str(path)) for path in writable)}
ProtectHome={"yes" if private_home else "read-only"}
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def _low_port(config: Config) -> bool:
    used = [config.http.port]
    used += [config.dimse.tls.port] if config.dimse.tls.enabled else []
    used += [config.dimse.plain.port] if config.dimse.plain.enabled else []
    return any(0 < port < 1024 for port in used)


def _quoted(word: str) -> str:
    """Quote a word as systemd reads it (systemd.service, "Command lines")."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(one in escaped for one in ' \t"\\;') else escaped
