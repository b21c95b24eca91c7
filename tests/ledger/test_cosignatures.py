"""Cosignatures: those of public witnesses over a public log verify, ours are written alike, and nothing else counts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from archive.errors import LedgerBroken
from archive.ledger import cosignatures, notes
from archive.ledger.cosignatures import Cosigner
from archive.ledger.notes import Verifier

# What a public log published in May 2026, with the keys that these witnesses publish.
CHECKPOINT = """\
arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— transparency.dev/DEV:witness-little-garden \
2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==
— witness1.smartit.nu/witness1 pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtmJbqmNWVuE0tgh0XwzdZsDsUAQ==
— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
— witness.stagemole.eu Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
"""
LOG = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
WITNESSES = (
    "transparency.dev/DEV:witness-little-garden+d8042a87+BCtusOxINQNUTN5Oj8HObRkh2yHf/MwYaGX4CPdiVEPM",
    "witness1.smartit.nu/witness1+a48c820f+BPSFWg9G6KPiO7QPryYO5Xq4oYJJ+kAvLKLSimDhoxMO",
    "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
    "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv",
)
AT = datetime(2026, 5, 23, 21, 50, 24, tzinfo=UTC)


def test_those_of_public_witnesses_verify() -> None:
    checkpoint = notes.parse(CHECKPOINT.encode())
    keys = [cosignatures.parse_key(one) for one in WITNESSES]
    assert [str(key) for key in keys] == list(WITNESSES), "key ids are computed as they do"
    assert cosignatures.found(checkpoint, keys) == dict.fromkeys(keys, AT)
    assert cosignatures.found(checkpoint, keys[:1]) == {keys[0]: AT}
    log = Verifier.parse(LOG)
    assert notes.verify(log, checkpoint.signatures[0][2], checkpoint) is None
    assert cosignatures.found(checkpoint, [log]) == {}, "a log is not its own witness"


def test_nothing_else_does() -> None:
    keys = [cosignatures.parse_key(one) for one in WITNESSES]
    for wrong in (
        CHECKPOINT.replace("1432088532", "1432088533"), CHECKPOINT.replace("U7WM79", "U7WM78"), CHECKPOINT.replace("dev\n14", "dew\n14", 1),
        CHECKPOINT.replace("AAAABqEiEgPlf", "AAAABqEiEhPlf"), CHECKPOINT.replace("U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\n",
                                                                               "U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\nmore\n"),
    ):
        with pytest.raises(LedgerBroken):
            cosignatures.found(notes.parse(wrong.encode(), extensions=True), keys)
    for text in ("", "x", LOG, WITNESSES[0].replace("d8042a87", "d8042a88"), WITNESSES[0][:-4]):
        with pytest.raises(LedgerBroken):
            cosignatures.parse_key(text)
    with pytest.raises(LedgerBroken):
        Verifier.parse(WITNESSES[0])  # a witness does not sign for a log


def test_ours_are_written_alike() -> None:
    ours = Cosigner("nas.example/witness", bytes(range(32)))
    checkpoint = notes.parse(CHECKPOINT.encode())
    line = ours.line(checkpoint.text, AT)
    cosigned = notes.parse(cosignatures.with_lines(CHECKPOINT.encode(), [line]))
    keys = [ours.verifier, *map(cosignatures.parse_key, WITNESSES)]
    assert cosignatures.found(cosigned, keys) == dict.fromkeys(keys, AT)
    assert cosignatures.own_lines(f"{line}{CHECKPOINT}", ours.verifier) == [line]
    assert cosignatures.parse_key(str(ours.verifier)) == ours.verifier
    assert line == (  # the same for ever
        "\N{EM DASH} nas.example/witness "
        "XSvi0AAAAABqEiEgiI/NFMIWS7aNXGKV+zXX+e1xv+THrdVOwXWts3Gnhp/8kQ7DUH0wpogNYUB6vdOUTZItiYyUockoTkVpcJxTCA==\n"
    )
