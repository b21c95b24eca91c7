"""Writing config.toml: the first one, and single keys of one that is there, with its comments kept."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from pathlib import Path

from archive.errors import ConfigurationError

FIRST = """\
# Strongroom. A key left out has its default; config.example.toml shows every key and why it is there.

[archive]
name = "clinic"
storage = "storage"
public_url = "https://127.0.0.1:8443"

[http]
host = "127.0.0.1"
port = 8443

[dimse]
ae_title = "STRONGROOM"

[dimse.tls]
host = "127.0.0.1"
port = 2762

[dimse.plain]
enabled = false
"""


def write_first(path: Path) -> bool:
    """Write the first configuration unless there is one; return whether it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.write(FIRST)
    return True


def open_to_network(path: Path, address: str) -> None:
    """Let both listeners accept at `address`, and make it the address clients use.

    Raises:
        ConfigurationError: the file cannot be changed line by line.
    """
    text = path.read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    port = raw.get("http", {}).get("port", 8443)
    scheme = "http" if raw.get("http", {}).get("tls") == "off" else "https"
    name = f"[{address}]" if ":" in address else address
    changes = [("archive", "public_url", f"{scheme}://{name}:{port}"), ("http", "host", address), ("dimse.tls", "host", address)]
    if raw.get("dimse", {}).get("plain", {}).get("enabled"):
        changes.append(("dimse.plain", "host", address))
    changed = text
    for table, key, value in changes:
        changed = set_key(changed, table, key, value)
    _check(changed, changes, path)
    if changed != text:
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(changed, encoding="utf-8")
        fresh.chmod(path.stat().st_mode & 0o777)
        fresh.replace(path)


def set_key(text: str, table: str, key: str, value: str) -> str:
    """Return the text of a TOML file with one string key set, in place when it is there."""
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    lines = text.splitlines()
    head = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")
    heads = {index: match[1].strip() for index, line in enumerate(lines) if (match := head.match(line))}
    start = next((index for index, name in heads.items() if name == table), None)
    if start is None:
        return "\n".join([*lines, "", f"[{table}]", f"{key} = {quoted}"]) + "\n"
    end = min((index for index in heads if index > start), default=len(lines))
    for index in range(start + 1, end):
        found = re.match(rf"(\s*{re.escape(key)}\s*=\s*)(\"[^\"]*\"|'[^']*')(.*)$", lines[index])
        if found:
            lines[index] = f"{found[1]}{quoted}{found[3]}"
            return "\n".join(lines) + "\n"
    lines.insert(start + 1, f"{key} = {quoted}")
    return "\n".join(lines) + "\n"


def _check(text: str, changes: list[tuple[str, str, str]], path: Path) -> None:
    """The rewritten file must say exactly what was meant; one in an unusual form is left alone."""
    try:
        raw: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raw = {}
    for table, key, value in changes:
        node: object = raw
        for part in (*table.split("."), key):
            node = node.get(part) if isinstance(node, dict) else None
        if node != value:
            message = f"{path} is written in a form this command does not change"
            raise ConfigurationError(message, remedy=f'set {table}.{key} = "{value}" there yourself, then start without --lan')


def own_address() -> str:
    """Return the address of this machine that others on its network reach.

    Raises:
        ConfigurationError: it is on no network.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: nothing is sent by connecting a datagram socket
            address = str(probe.getsockname()[0])
        except OSError:
            address = ""
    if not address or address.startswith("127."):
        message = "this machine's own address on the network was not found"
        raise ConfigurationError(message, remedy="name it: archive up --lan ADDRESS")
    return address
