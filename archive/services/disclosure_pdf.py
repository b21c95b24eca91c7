"""The disclosure report as a PDF to hand to a patient: one table over as many pages as it takes, drawn without markup.

Letters come from DejaVu Sans where the machine has it, else from the library's Bitstream Vera, in both cases only those that are used;
Chinese, Japanese and Korean from the reader's own fonts, so that nothing large is embedded. What neither can draw, or would be drawn in
the wrong direction, is written as its code point, and the report says so.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

MEDIA_TYPE = "application/pdf"
DEJAVU = tuple(Path(folder) / "DejaVuSans.ttf" for folder in (
    "/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/dejavu-sans-fonts", "/usr/share/fonts/dejavu", "/usr/share/fonts/TTF",
    "/Library/Fonts",
))
_BASE, _SIZE, _LEADING = "StrongroomText", 7.5, 9.5
_MARGIN, _WIDTH, _HEIGHT = 36.0, 842.0, 595.0  # A4, on its side
_COLUMNS = (
    ("When (UTC)", 84), ("Who", 96), ("What", 84), ("Study", 176), ("Images", 36), ("Network", 80), ("Why they could", 172), ("Event", 42),
)
_LONGEST = 600
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})


@dataclass(frozen=True, slots=True)
class About:
    """What the report is of, and who made it when."""

    patient_id: str
    datastore: str
    archive: str
    made_at: datetime
    since: datetime | None = None
    until: datetime | None = None
    made_by: str = ""


def as_pdf(rows: list[dict[str, Any]], about: About) -> bytes:
    """Return the report."""
    from reportlab.pdfgen.canvas import Canvas

    fonts = _Fonts()
    out = io.BytesIO()
    page = Canvas(out, pagesize=(_WIDTH, _HEIGHT), pageCompression=1)
    page.setTitle("Disclosures of a patient's images")
    page.setAuthor(about.archive)
    page.setCreator("Strongroom")
    sheet = _Sheet(page, fonts)
    sheet.heading(about, len(rows))
    for row in rows:
        sheet.row(_cells(row))
    sheet.ending()
    page.save()
    return out.getvalue()


def _cells(row: dict[str, Any]) -> list[str]:
    because = "; ".join(
        f"grant {one['grant']} to {one['subject']}: {one['role']} on {one['level']}" + (f" ({one['reason']})" if one["reason"] else "")
        for one in row["because"]
    )
    what = " ".join(part for part in (row["action"], row["what"]) if part)
    return [
        f"{row['at']:%Y-%m-%d %H:%M:%S}", f"{row['who']} ({row['kind']})" if row["kind"] else row["who"], what, " ".join(row["studies"]),
        str(row["instances"]), row["network"], because or "no grant in force is left that says so", str(row["event"]),
    ]


class _Fonts:
    """Which font draws which character."""

    def __init__(self) -> None:
        self._covered = _base()
        self.missed = False

    def runs(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield font and text, run by run; what cannot be drawn as its code point."""
        run, name = "", _BASE
        for character in unicodedata.normalize("NFC", text):
            font = self._font(character)
            drawn = character
            if font is None:
                font, drawn, self.missed = _BASE, f"[U+{ord(character):04X}]", True
            if font != name and run:
                yield name, run
                run = ""
            run, name = run + drawn, font
        if run:
            yield name, run

    def _font(self, character: str) -> str | None:
        code = ord(character)
        if unicodedata.bidirectional(character) in _RIGHT_TO_LEFT or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Mn"):
            return None
        if code in self._covered:
            return _BASE
        if 0x3040 <= code <= 0x30FF:
            return _asian("HeiseiMin-W3")
        if 0xAC00 <= code <= 0xD7A3:
            return _asian("HYSMyeongJo-Medium")
        if 0x3400 <= code <= 0x9FFF or 0x3000 <= code <= 0x303F or 0xFF00 <= code <= 0xFFEF:
            return _asian("STSong-Light")
        return None


@lru_cache(maxsize=1)
def _base() -> frozenset[int]:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    found = next((str(path) for path in DEJAVU if path.is_file()), "Vera.ttf")
    font = TTFont(_BASE, found)
    pdfmetrics.registerFont(font)
    return frozenset(font.face.charToGlyph)


@lru_cache(maxsize=8)
def _asian(name: str) -> str:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont

    pdfmetrics.registerFont(UnicodeCIDFont(name))
    return name


class _Sheet:
    """Where on which page the next row goes."""

    def __init__(self, page: Any, fonts: _Fonts) -> None:
        self._page, self._fonts = page, fonts
        self._number, self._y = 1, _HEIGHT - _MARGIN

    def heading(self, about: About, count: int) -> None:
        """Say what the report is."""
        period = f"{_day(about.since, 'the beginning')} to {_day(about.until, 'now')}"
        by = f" by {about.made_by}" if about.made_by else ""
        self._draw(_MARGIN, "Who saw this patient's images", size=14)
        self._y -= 20
        for line in (
            f"Archive {about.archive}, datastore {about.datastore}. Patient ID {about.patient_id}. Period: {period}.",
            f"Made {about.made_at:%Y-%m-%d %H:%M} UTC{by}. Accesses listed: {count}: every read, sending, export and sharing recorded.",
            "Why they could is told from the grants in force at that moment. An event's number proves it: archive ledger prove NUMBER.",
        ):
            self._draw(_MARGIN, line, size=9)
            self._y -= 12
        self._y -= 6
        self._head()

    def row(self, cells: list[str]) -> None:
        """Draw one row, on a new page where this one is full."""
        wrapped = [self._wrap(text[:_LONGEST], width - 6) for text, (_name, width) in zip(cells, _COLUMNS, strict=True)]
        height = max(len(lines) for lines in wrapped) * _LEADING + 4
        if self._y - height < _MARGIN + 14:
            self._next()
        x = _MARGIN
        for lines, (_name, width) in zip(wrapped, _COLUMNS, strict=True):
            for number, line in enumerate(lines):
                self._draw(x, line, down=number * _LEADING)
            x += width
        self._y -= height
        self._page.setLineWidth(0.25)
        self._page.line(_MARGIN, self._y + 7, _WIDTH - _MARGIN, self._y + 7)

    def ending(self) -> None:
        """Say what could not be drawn, and number the last page."""
        if self._fonts.missed:
            if self._y < _MARGIN + 28:
                self._next()
            self._draw(_MARGIN, "Characters that cannot be drawn here stand as their code points, [U+05D0]; the CSV report has them.")
        self._foot()

    def _head(self) -> None:
        x = _MARGIN
        for name, width in _COLUMNS:
            self._draw(x, name)
            x += width
        self._y -= 5
        self._page.setLineWidth(0.8)
        self._page.line(_MARGIN, self._y, _WIDTH - _MARGIN, self._y)
        self._y -= 11

    def _next(self) -> None:
        self._foot()
        self._page.showPage()
        self._number += 1
        self._y = _HEIGHT - _MARGIN
        self._head()

    def _foot(self) -> None:
        kept, self._y = self._y, _MARGIN - 14
        self._draw(_WIDTH - _MARGIN - 40, f"page {self._number}")
        self._y = kept

    def _draw(self, x: float, text: str, *, size: float = _SIZE, down: float = 0.0) -> None:
        for font, run in self._fonts.runs(text):
            self._page.setFont(font, size)
            self._page.drawString(x, self._y - down, run)
            x += self._page.stringWidth(run, font, size)

    def _width(self, text: str) -> float:
        return sum(float(self._page.stringWidth(run, font, _SIZE)) for font, run in self._fonts.runs(text))

    def _wrap(self, text: str, width: float) -> list[str]:
        """Break between words where that goes, else within one."""
        lines, line = [], ""
        for word in text.split():
            both = f"{line} {word}" if line else word
            if self._width(both) <= width:
                line = both
                continue
            if line:
                lines.append(line)
            line = word
            while self._width(line) > width and len(line) > 1:
                fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or self._width(line[:n]) <= width)
                lines.append(line[:fits])
                line = line[fits:]
        return [*lines, line] if line or not lines else lines


def _day(at: datetime | None, otherwise: str) -> str:
    return otherwise if at is None else f"{at:%Y-%m-%d %H:%M}"
