"""Answers for people and programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest

from archive.cli import output


class Row(msgspec.Struct):
    at: datetime
    digest: bytes
    names: tuple[str, ...]


def test_json_has_hex_digests_and_instants_with_their_zone() -> None:
    row = Row(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), b"\x01\xff", ("a", "ü"))
    assert json.loads(output.to_json([row, {"deep": {"b": b"\x00"}}])) == [
        {"at": "2026-01-02T03:04:05Z", "digest": "01ff", "names": ["a", "ü"]}, {"deep": {"b": "00"}},
    ]


def test_times_have_a_zone() -> None:
    shown = output.text(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert shown == output.text("2026-01-02T03:04:05+00:00")
    assert len(shown.split()) == 3
    assert output.text(datetime(9999, 12, 31, tzinfo=UTC)) == "always"


@pytest.mark.parametrize("hostile", ["\x1b[31mred", "two\nlines", "bell\x07", "\u202eright to left", "\x9b2J"])
def test_nothing_steers_the_terminal(hostile: str) -> None:
    assert not set(hostile) & set("\x1b\n\x07\u202e\x9b") & set(output.text(hostile))
    assert not set("\x1b\n\x07\u202e\x9b") & set(output.text([{"name": hostile}]))


def test_a_uid_or_name_is_not_taken_for_a_time() -> None:
    assert output.text("1.2.840.10008.5.1.4.1.1.2") == "1.2.840.10008.5.1.4.1.1.2"
    assert output.text("0123456789Txxxxxxxxxx") == "0123456789Txxxxxxxxxx"


def test_tables_are_plain_lines_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"id": 1, "name": "a b", "on": True, "until": None}], ["id", "name", "on", "until"])
    assert capsys.readouterr().out == "id\tname\ton\tuntil\n1\ta b\tyes\t-\n"
