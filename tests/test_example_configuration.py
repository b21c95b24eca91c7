"""config.example.toml shows every key with its default and why it is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from archive.config import Config, load, parse

EXAMPLE = Path(__file__).resolve().parents[1] / "config.example.toml"


def keys(kind: type[msgspec.Struct], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found |= keys(field.type, name + ".")
        elif name not in {"base", "path"}:
            found[name] = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return found


def written(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            found |= written(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return found


def test_it_loads_and_is_the_default() -> None:
    assert load(EXAMPLE) == parse({}, EXAMPLE)


def test_every_key_is_there_with_its_default() -> None:
    assert written(tomllib.loads(EXAMPLE.read_text())) == keys(Config)


def test_every_key_says_why() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if re.match(r"\w+ = ", line)]
    assert len(lines) == len(keys(Config))
    assert [line for line in lines if not re.search(r" # \S.{15,}$", line)] == []
