"""How attributes look to people: DICOM JSON elements as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask import Flask

from archive.dicom.attributes import lookup

Row = Mapping[str, Mapping[str, Any]]


def register(app: Flask) -> None:
    """Give the templates these words."""
    app.add_template_filter(date, "dicom_date")
    app.add_template_filter(time, "dicom_time")
    app.add_template_filter(thousands, "thousands")
    app.add_template_filter(named, "dicom_name")


def value(row: Row, keyword: str) -> str:
    """Return an attribute's values as text, several joined by a slash; empty when absent."""
    attribute = lookup(keyword)
    element = row.get(attribute.tag_hex, {}) if attribute is not None else {}
    return " / ".join(_text(one) for one in element.get("Value", []) if one not in (None, ""))


def _text(one: Any) -> str:
    if isinstance(one, Mapping):
        groups = [person(str(one[group])) for group in ("Alphabetic", "Ideographic", "Phonetic") if one.get(group)]
        return " · ".join(group for group in groups if group)
    return str(one)


def person(group: str) -> str:
    """Return one component group of a PN: "Family, Given Middle" (PS3.5 6.2.1.1)."""
    parts = [part.strip() for part in group.split("^")] + [""] * 5
    family, given, middle, prefix, suffix = parts[:5]
    first = " ".join(part for part in (prefix, given, middle, suffix) if part)
    return ", ".join(part for part in (family, first) if part)


def named(text: str) -> str:
    """Return a PN value as the list shows it, each of its groups."""
    return " · ".join(person(group) for group in text.split("=") if group)


def date(text: str) -> str:
    """Return a DA value as 2026-11-21; anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def time(text: str) -> str:
    """Return a TM value as 14:30; anything else as it is."""
    return f"{text[:2]}:{text[2:4]}" if len(text) >= 4 and text[:4].isdigit() else text


def thousands(number: int) -> str:
    """Return 12 345 with thin spaces."""
    return f"{number:,}".replace(",", "\u202f")


@dataclass(frozen=True, slots=True)
class StudyLine:
    """A study as a line of the list."""

    uid: str
    patient: str
    patient_id: str
    birth_date: str
    sex: str
    date: str
    time: str
    description: str
    accession_number: str
    modalities: str
    n_series: str
    n_instances: str

    @classmethod
    def of(cls, row: Row) -> StudyLine:
        """Read a search answer's row."""
        return cls(
            *(
                value(row, keyword)
                for keyword in (
                    "StudyInstanceUID", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
                    "StudyDescription", "AccessionNumber", "ModalitiesInStudy", "NumberOfStudyRelatedSeries",
                    "NumberOfStudyRelatedInstances",
                )
            )
        )


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """A series as a tile of the study page."""

    uid: str
    number: str
    modality: str
    description: str
    body_part: str
    n_instances: str

    @classmethod
    def of(cls, row: Row) -> SeriesLine:
        """Read a search answer's row."""
        keywords = ("SeriesInstanceUID", "SeriesNumber", "Modality", "SeriesDescription", "BodyPartExamined",
                    "NumberOfSeriesRelatedInstances")
        return cls(*(value(row, keyword) for keyword in keywords))
