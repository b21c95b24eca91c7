"""The audit log by network and outcome, as JSON Lines that check themselves, and the disclosure report on paper."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import audit_event
from archive.errors import Forbidden, InvalidRequest, LedgerBroken, NotFound
from archive.ledger import proofs
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.node import Node
from archive.services import audit_export, audit_search, disclosure_pdf
from archive.services.audit_export import Span
from archive.services.disclosure_pdf import About, as_pdf
from tests.services import archives

ADDRESSES = ["10.0.0.1", "10.0.0.200", "10.1.0.1", "2001:db8::5", "::ffff:10.0.0.7", "", "not an address"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path_factory.mktemp("audit"))) as opened:
        console = archives.the_console(opened)
        for name in ("mia", "dora", "gone"):
            opened.accounts.add_user(console, name, roles=["auditor"] if name == "dora" else [])
        archives.store(opened, archives.instance(1, study="1.2.1"))
        mia = archives.user(opened, "mia")
        for number, address in enumerate(ADDRESSES):
            who = dataclasses.replace(mia, address=address)
            event = Event(Kind.DENIED if number % 2 else Kind.SEARCHED, outcome=8 if number % 2 else 0, subject=who,
                          objects=(ObjectRef("study", "1.2.1"),))
            with opened.core.database.begin() as tx:
                opened.core.ledger.record(tx, event, at=opened.core.clock())
        with opened.core.database.begin() as tx:  # a failed sign-in has no subject
            event = Event(Kind.SIGNIN_FAILED, outcome=4, detail={"address": "192.0.2.9"})
            opened.core.ledger.record(tx, event, at=opened.core.clock())
        yield opened


def search(node: Node, **wanted: Any) -> list[dict[str, Any]]:
    return node.oversight.search(archives.the_console(node), limit=1000, **wanted)


@pytest.mark.parametrize(("network", "expected"), [
    ("10.0.0.0/24", {"10.0.0.1", "10.0.0.200", "::ffff:10.0.0.7"}),
    ("10.0.0.0/8", {"10.0.0.1", "10.0.0.200", "10.1.0.1", "::ffff:10.0.0.7"}),
    ("10.0.0.1", {"10.0.0.1"}), ("2001:db8::/32", {"2001:db8::5"}), ("172.16.0.0/12", set()), ("10.0.0.77/24", {
        "10.0.0.1", "10.0.0.200", "::ffff:10.0.0.7"}),
])
def test_by_network(node: Node, network: str, expected: set[str]) -> None:
    assert {row["body"]["subject"]["address"] for row in search(node, network=network)} == expected
    [row] = search(node, network="192.0.2.0/28")
    assert row["kind"] == "signin-failed"


def test_by_network_in_pages(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_search, "AT_ONCE", 2)
    monkeypatch.setattr(audit_search, "MOST_OPENED", 4)
    console, found, before, asked = archives.the_console(node), [], None, 0
    while True:
        rows, before = node.oversight.page(console, network="10.0.0.0/8", before=before, limit=3)
        found += [row["body"]["subject"]["address"] for row in rows]
        asked += 1
        if before is None:
            break
    assert (found, asked > 3) == (["::ffff:10.0.0.7", "10.1.0.1", "10.0.0.200", "10.0.0.1"], True)


def test_by_action_and_outcome(node: Node) -> None:
    assert {row["kind"] for row in search(node, outcome=8)} == {"denied"}
    assert {row["kind"] for row in search(node, outcome=4)} == {"signin-failed"}
    assert {row["action"] for row in search(node, actions=["R", "U"])} == {"R", "U"}
    both = search(node, user="mia", study="1.2.1", actions=["E"], outcome=0, network="10.1.0.0/16", since=datetime(2020, 1, 1, tzinfo=UTC))
    assert [row["body"]["subject"]["address"] for row in both] == ["10.1.0.1"]
    for bad in ({"actions": ["X"]}, {"outcome": 5}, {"network": "10.0.0.0/99"}, {"network": "everywhere"}):
        with pytest.raises(InvalidRequest):
            search(node, **bad)


def test_somebody_who_was_removed_is_still_found(node: Node) -> None:
    console = archives.the_console(node)
    gone = archives.user(node, "gone")
    with node.core.database.begin() as tx:
        node.core.ledger.record(tx, Event(Kind.SEARCHED, subject=gone), at=node.core.clock())
    node.accounts.remove_user(console, "gone")
    for word in (str(gone.principal_id), f"gone/{gone.principal_id}"):
        assert [row["kind"] for row in search(node, user=word)] == ["searched"]
    with pytest.raises(NotFound):
        search(node, user="gone")


def lines(node: Node, **span: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *rows, last = node.audit_export.lines(archives.the_console(node), Span(**span))
    assert all(row.endswith(b"\n") and row.count(b"\n") == 1 for row in [*rows, last])
    return [json.loads(row) for row in rows], json.loads(last)["end"]


def canonical(value: Any) -> bytes:
    """As a reader that has nothing but Python's json writes it again."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_every_line_checks_itself(node: Node) -> None:
    with node.core.database.begin() as tx:
        odd = Event(Kind.CONFIGURED, detail={"what": 'ümläut 山田 \u2028 \x01 " \\ \x7f', "sha256": "x", "Zz": 1, "aa": [True, {"b": 2}]})
        n = node.core.ledger.record(tx, odd, at=node.core.clock())
    found, end = lines(node)
    assert [one["n"] for one in found] == list(range(end["size"]))
    assert (end["complete"], end["lines"], end["next_after"], n < end["size"]) == (True, end["size"], end["size"] - 1, True)
    for one in found:
        leaf = canonical(one["leaf"])
        assert hashlib.sha256(b"\0" + leaf).hexdigest() == one["hash"]
        assert hashlib.sha256(bytes.fromhex(one["salt"]) + canonical(one["body"])).hexdigest() == one["leaf"]["c"]
        assert one["leaf"]["n"] == one["n"]
    node.upkeep.checkpoint()
    proof = proofs.check(node.oversight.prove(archives.the_console(node), str(n)))
    assert canonical(proof.leaf) == canonical(found[n]["leaf"])


def test_resumed_it_is_the_same(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, end = lines(node)
    monkeypatch.setattr(audit_export, "_ROWS", audit_export._ROWS.limit(3))
    found: list[dict[str, Any]] = []
    after = -1
    while len(found) < end["size"]:
        some, told = lines(node, after=after, limit=4)
        assert 0 < len(some) <= 4
        found, after = found + some, told["next_after"]
    assert found[: end["size"]] == whole
    at = datetime.fromisoformat(whole[5]["at"])
    some, _ = lines(node, since=at, until=at + timedelta(microseconds=1))
    assert {one["at"] for one in some} == {whole[5]["at"]}


def test_the_export_is_recorded_before_its_first_line_and_ends_with_the_permission(node: Node) -> None:
    dora = archives.user(node, "dora")
    node.audit_export.lines(dora, Span(after=3))
    [row] = list(search(node, user="dora", kinds=["audit-read"]))[:1]
    assert row["body"]["detail"] == {"after": 3, "size": row["n"], "what": "export"}
    with pytest.raises(Forbidden):
        node.audit_export.lines(archives.user(node, "mia"), Span())
    assert search(node, user="mia", kinds=["denied"])[0]["outcome"] == 8


def test_the_permission_is_asked_again_on_the_way(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_export, "_ROWS", audit_export._ROWS.limit(3))
    console = archives.the_console(node)
    node.accounts.add_user(console, "temp", roles=["auditor"])
    on_the_way = node.audit_export.lines(archives.user(node, "temp"), Span())
    assert all(next(on_the_way) for _ in range(3))
    node.accounts.disable_user(console, "temp")
    with pytest.raises(Forbidden):
        next(on_the_way)


def test_what_was_erased_and_what_was_changed(node: Node) -> None:
    console = archives.the_console(node)
    n = next(row["n"] for row in search(node, kinds=["searched"]))
    with node.core.database.begin() as tx:
        body = tx.execute(sa.select(audit_event.c.body).where(audit_event.c.n == n)).scalar_one()
        tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=None))
    [one] = [row for row in lines(node)[0] if row["n"] == n]
    assert (one["salt"], one["body"], one["leaf"]["n"]) == (None, None, n)
    with node.core.database.begin() as tx:
        tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=body[:-1] + bytes([body[-1] ^ 1])))
    with pytest.raises(LedgerBroken):
        list(node.audit_export.lines(console, Span(after=n - 1)))
    with node.core.database.begin() as tx:
        tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=body))


# --- paper -------------------------------------------------------------------------------------------------------------------------


def told(**more: Any) -> dict[str, Any]:
    because = [{"grant": 4, "subject": "readers", "role": "radiologist", "level": "study", "object": "1.2", "reason": "second (one) \\"}]
    return {
        "event": 17, "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "who": "mia", "kind": "user", "action": "read", "what": "",
        "studies": ["1.2.840.10008.1"], "instances": 3, "network": "10.0.0.1", "because": because, **more,
    }


ABOUT = About("P1", "clinical", "clinic", datetime(2026, 1, 3, tzinfo=UTC))


def test_a_report_of_many_pages_stays_small() -> None:
    pdf = as_pdf([told(event=number) for number in range(200)], ABOUT)
    assert pdf.startswith(b"%PDF-1.")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 4
    assert len(pdf) < 400_000
    assert as_pdf([], ABOUT).startswith(b"%PDF-1.")


@pytest.mark.parametrize("fonts", ["there", "absent"])
def test_every_script_is_drawn_or_its_code_point_is(fonts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fonts == "absent":
        monkeypatch.setattr(disclosure_pdf, "DEJAVU", ())
    disclosure_pdf._base.cache_clear()
    used = disclosure_pdf._Fonts()
    runs = list(used.runs("Zoë 山田 やまだ 김"))
    assert [font for font, _ in runs] == ["StrongroomText", "STSong-Light", "StrongroomText", "HeiseiMin-W3", "StrongroomText",
                                          "HYSMyeongJo-Medium"]
    assert "".join(text for _, text in runs) == "Zoë 山田 やまだ 김"
    assert not used.missed
    assert "".join(text for _, text in used.runs("אב\u202e\x07")) == "[U+05D0][U+05D1][U+202E][U+0007]"
    assert used.missed
    greek = "".join(text for _, text in used.runs("Ω"))
    assert greek in ("Ω", "[U+03A9]")
    if fonts == "absent":
        assert "".join(text for _, text in used.runs("Ж")) == "[U+0416]"
    pdf = as_pdf([told(who="山田 太郎 אב Ольга", network="x" * 300, studies=["1." * 30] * 9)], ABOUT)
    assert b"STSong-Light" in pdf
    assert len(pdf) < 120_000
    disclosure_pdf._base.cache_clear()


def test_nothing_written_leaves_its_column() -> None:
    from reportlab.pdfgen.canvas import Canvas

    sheet = disclosure_pdf._Sheet(Canvas(io.BytesIO()), disclosure_pdf._Fonts())
    for text in ("", "a", "word " * 9, "x" * 60, "山" * 30, "1.2.840." * 5 + " short"):
        parts = sheet._wrap(text, 60.0)
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")
        assert all(sheet._width(line) <= 60.0 for line in parts)


def test_a_report_of_a_real_access(node: Node, tmp_path: Path) -> None:
    console = archives.the_console(node)
    node.accounts.add_user(console, "reader")
    node.accounts.add_grant(console, to="reader", role="radiologist", target=Target("everything"))
    reader = archives.user(node, "reader")
    for found in node.retrieve.instances(reader, "clinical", "1.2.1"):
        for view in node.retrieve.open(reader, found):
            bytes(view)
    rows = node.disclosure.of_patient(console, "P1")
    assert len(rows) == 1
    (tmp_path / "r.pdf").write_bytes(as_pdf(rows, ABOUT))
    assert (tmp_path / "r.pdf").stat().st_size > 1000
