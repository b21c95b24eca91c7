"""Writing config.toml: the first one, and single keys of one that is there, with its comments kept."""

from __future__ import annotations

import re
import socket
import tomllib
from pathlib import Path

from archive.errors import ConfigurationError
from archive.keys import private_files

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
    """Write the first configuration unless there is one; return whether it was written, durably.

    Raises:
        KeysUnavailable: it cannot be written.
    """
    if path.exists():
        return False
    private_files.make_directory(path.parent, 0o777)
    private_files.write(path, FIRST.encode(), mode=0o644, replace=False)
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
        _replace(path, changed)


def add_witness(path: Path, name: str, url: str, key: str) -> None:
    """Write a witness into the configuration.

    Raises:
        ConfigurationError: there is one of that name, or the file cannot be changed so.
    """
    text = path.read_text(encoding="utf-8")
    known = tomllib.loads(text).get("witness", {}).get("known", [])
    if any(one.get("name") == name for one in known):
        message = f"there is a witness {name} already"
        raise ConfigurationError(message, remedy=f"give 'archive witness remove {name}' first, or another name")
    if not known:
        text = re.sub(r"(?m)^known\s*=\s*\[\s*\][^\n]*\n", "", text)
    lines = [f"{field} = {_quoted(value)}" for field, value in (("name", name), ("url", url), ("key", key))]
    added = "\n".join([text.rstrip("\n"), "", "[[witness.known]]", *lines]) + "\n"
    _replace_witnesses(path, added, [*known, {"name": name, "url": url, "key": key}])


def remove_witness(path: Path, name: str) -> None:
    """Take a witness out of the configuration.

    Raises:
        ConfigurationError: there is none of that name, or the file cannot be changed so.
    """
    text = path.read_text(encoding="utf-8")
    known = tomllib.loads(text).get("witness", {}).get("known", [])
    left = [one for one in known if one.get("name") != name]
    if left == known:
        message = f"there is no witness {name} in {path}"
        raise ConfigurationError(message, remedy="'archive witness list' shows them")
    parts = re.split(r"(?m)^(?=[ \t]*\[)", text)
    own = re.compile(rf"(?m)^[ \t]*name\s*=\s*[\"']{re.escape(name)}[\"']")
    kept = [part for part in parts if not (re.match(r"[ \t]*\[\[\s*witness\s*\.\s*known\s*\]\]", part) and own.search(part))]
    _replace_witnesses(path, "".join(kept), left)


def _replace_witnesses(path: Path, text: str, meant: list[dict[str, str]]) -> None:
    from archive.config import parse

    try:
        written = parse(tomllib.loads(text), path).witness.known
        sound = [(one.name, one.url, one.key) for one in written] == [(one["name"], one["url"], one["key"]) for one in meant]
    except tomllib.TOMLDecodeError:
        sound = False
    if not sound:
        message = f"{path} is written in a form this command does not change"
        raise ConfigurationError(message, remedy="edit [[witness.known]] there yourself, as config.example.toml shows")
    _replace(path, text)


def _replace(path: Path, text: str) -> None:
    private_files.write(path, text.encode(), mode=path.stat().st_mode & 0o777)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def set_key(text: str, table: str, key: str, value: str) -> str:
    """Return the text of a TOML file with one string key set, in place when it is there."""
    quoted = _quoted(value)
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
