"""What a search answers: which attributes, from which columns, as a DICOM JSON data set (PS3.18 10.6.3, F.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import ColumnElement, FromClause

from archive.access import predicate
from archive.access.shape import Shape
from archive.db.tables import instance, series
from archive.dicom.attributes import ATTRIBUTES, Attribute, Level
from archive.index.columns import SEVERAL

_RANK = {Level.PATIENT: 0, Level.STUDY: 1, Level.SERIES: 2, Level.IMAGE: 3}
_DOCUMENT = {Level.PATIENT: "of_study", Level.STUDY: "of_study", Level.SERIES: "of_series", Level.IMAGE: "of_image"}
class _Chosen(sa.types.TypeDecorator[dict[str, Any]]):
    """Of a document in SQLite the elements of some tags: no others are made into objects."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, tags: tuple[str, ...]) -> None:
        """Choose these tags."""
        super().__init__()
        self.tags = tags
        fields = [(f"tag_{tag}", Any, msgspec.field(default=None, name=tag)) for tag in tags]
        self._read = msgspec.json.Decoder(msgspec.defstruct("Chosen", fields)).decode

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> dict[str, Any]:  # noqa: ARG002 # SQLAlchemy's signature
        """Return those that are there."""
        if value is None:
            return {}
        return {tag: one for tag, one in zip(self.tags, msgspec.structs.astuple(self._read(value)), strict=True) if one}


_UIDS = frozenset({"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"})
_UNANSWERED = frozenset({"RetrieveURL"})  # the door knows its own address
_EVERY_LEVEL = frozenset({"InstanceAvailability"})


@dataclass(frozen=True, slots=True)
class Computed:
    """Attributes derived from visible series, as scalar subqueries on the row's study or series."""

    shape: Shape
    st: FromClause
    se: FromClause
    im: FromClause
    sqlite: bool

    def column(self, attribute: Attribute) -> ColumnElement[Any] | None:
        """Return the attribute's value as a column, None when nothing is to be read for it."""
        derive = _DERIVE.get(attribute.keyword)
        return None if derive is None else derive(self)

    def over_study(self, what: ColumnElement[Any]) -> ColumnElement[Any]:
        """Aggregate the visible series of the row's study."""
        return self._over(_AGG_SE.c.study_pk == self.st.c.id, what)

    def of_visible(self) -> ColumnElement[Any]:
        """Collect modality and number of instances of the row's visible series: the scope is asked once for all."""
        pair, every = (sa.func.json_array, sa.func.json_group_array) if self.sqlite else (sa.func.json_build_array, sa.func.json_agg)
        return self.over_study(every(pair(_AGG_SE.c.modality, _AGG_SE.c.n_instances), type_=sa.JSON()))

    def over_patient(self, what: ColumnElement[Any]) -> ColumnElement[Any]:
        """Aggregate the visible series of the row's patient."""
        return self._over(_AGG_SE.c.patient_pk == self.st.c.patient_pk, what)

    def _over(self, which: ColumnElement[bool], what: ColumnElement[Any]) -> ColumnElement[Any]:
        visible = sa.select(what).select_from(_AGG_SE).where(which, predicate.series_condition(_AGG_SE, self.shape))
        return visible.correlate(self.st).scalar_subquery()

    def classes(self) -> ColumnElement[Any]:
        """Collect the SOP classes of the live instances in the study's visible series."""
        inside = _AGG_IM.join(_AGG_SE, _AGG_SE.c.id == _AGG_IM.c.series_pk)
        visible = sa.select(self.distinct(_AGG_IM.c.sop_class_uid)).select_from(inside).where(
            _AGG_SE.c.study_pk == self.st.c.id, predicate.series_condition(_AGG_SE, self.shape), _AGG_IM.c.rejected_at.is_(None)
        )
        return visible.correlate(self.st).scalar_subquery()

    def distinct(self, column: ColumnElement[str]) -> ColumnElement[Any]:
        """Collect the different values of a column as a JSON array."""
        every = sa.func.json_group_array if self.sqlite else sa.func.json_agg
        return every(column.distinct(), type_=sa.JSON())


_AGG_SE, _AGG_IM = series.alias("agg_se"), instance.alias("agg_im")
_SUM = sa.func.coalesce(sa.func.sum(_AGG_SE.c.n_instances), 0)
_OF_VISIBLE: dict[str, Callable[[list[list[Any]]], Any]] = {
    "ModalitiesInStudy": lambda found: [modality for modality, _ in found],
    "NumberOfStudyRelatedSeries": len,
    "NumberOfStudyRelatedInstances": lambda found: sum(count for _, count in found),
}
_DERIVE: dict[str, Callable[[Computed], ColumnElement[Any]]] = {
    "SOPClassesInStudy": Computed.classes,
    "NumberOfPatientRelatedStudies": lambda on: on.over_patient(sa.func.count(_AGG_SE.c.study_pk.distinct())),
    "NumberOfPatientRelatedSeries": lambda on: on.over_patient(sa.func.count()),
    "NumberOfPatientRelatedInstances": lambda on: on.over_patient(_SUM),
    "NumberOfSeriesRelatedInstances": lambda on: on.se.c.n_instances,
    "AvailableTransferSyntaxUID": lambda on: on.im.c.transfer_syntax_uid,
}


class _Told(NamedTuple):
    """One attribute of every data set, and which document of a row holds it; an empty one: it is derived."""

    tag_hex: str
    vr: str
    document: str
    attribute: Attribute


@dataclass(frozen=True, slots=True)
class Answer:
    """The attributes of every data set of one answer."""

    level: Level
    attributes: tuple[Attribute, ...]
    everything: frozenset[Level]
    """Levels of which all that is stored is answered."""
    told: tuple[_Told, ...]
    usual: bool

    @classmethod
    def of(
        cls,
        level: Level,
        keys: Sequence[tuple[Attribute, Any]],
        include: Sequence[Attribute] | Literal["all"],
        *,
        with_study: bool,
        with_series: bool,
        usual: bool = True,
    ) -> Answer:
        """Choose the level's usual attributes, those of levels above that the address leaves open, the keys', and those asked for.

        Not `usual`: the keys', those asked for, and UIDs.

        An attribute of a lower level has no one value at this level and is left out.
        """
        own = frozenset({Level.PATIENT, Level.STUDY}) if level is Level.STUDY else frozenset({level})
        told = set(own) if usual else set()
        if usual and with_study and level in {Level.SERIES, Level.IMAGE}:
            told |= {Level.PATIENT, Level.STUDY}
        if usual and with_series and level is Level.IMAGE:
            told.add(Level.SERIES)
        asked = {attribute.tag for attribute, _ in keys}
        if include == "all":
            asked |= {attribute.tag for attribute in ATTRIBUTES if attribute.level in own and attribute.computed}
        else:
            asked |= {attribute.tag for attribute in include}
        chosen = tuple(
            attribute
            for attribute in sorted(ATTRIBUTES, key=lambda one: one.tag)
            if attribute.keyword not in _UNANSWERED
            and (
                (usual and attribute.keyword in _EVERY_LEVEL)
                or (
                    _RANK[attribute.level] <= _RANK[level]
                    and ((attribute.returned and attribute.level in told) or attribute.tag in asked or attribute.keyword in _UIDS)
                )
            )
        )
        return cls(level, chosen, own if include == "all" else frozenset(), tuple(
            _Told(one.tag_hex, one.vr, "" if one.computed or one.keyword in _UIDS else _DOCUMENT[one.level], one) for one in chosen
        ), usual)

    def columns(self, computed: Computed) -> list[ColumnElement[Any]]:
        """Return what to select."""
        rank = _RANK[self.level]
        documents = {"of_study": computed.st.c.attributes}
        uids = [computed.st.c.study_instance_uid.label("StudyInstanceUID")]
        if rank >= _RANK[Level.SERIES]:
            documents["of_series"] = computed.se.c.attributes
            uids.append(computed.se.c.series_instance_uid.label("SeriesInstanceUID"))
        if rank >= _RANK[Level.IMAGE]:
            documents["of_image"] = computed.im.c.attributes
            uids += [computed.im.c.sop_instance_uid.label("SOPInstanceUID"), computed.im.c.sop_class_uid.label("SOPClassUID")]
        needed = {one.document for one in self.told} | {_DOCUMENT[level] for level in self.everything}
        derived = [(attribute.keyword, computed.column(attribute)) for attribute in self.attributes if attribute.computed]
        if any(attribute.keyword in _OF_VISIBLE for attribute in self.attributes):
            derived.append(("of_visible", computed.of_visible()))
        return [
            *uids,
            *(self._document(name, document, computed).label(name) for name, document in documents.items() if name in needed),
            *(column.label(keyword) for keyword, column in derived if column is not None),
        ]

    def _document(self, name: str, document: ColumnElement[Any], computed: Computed) -> ColumnElement[Any]:
        """Return a document as it is read: whole where most of it is answered."""
        if self.usual or self.everything or not computed.sqlite:
            return document
        return sa.type_coerce(document, _Chosen(tuple(one.tag_hex for one in self.told if one.document == name)))

    def dataset(self, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return one data set; an attribute without a value has its VR alone."""
        found: dict[str, dict[str, Any]] = {}
        for level in self.everything:
            found |= row[_DOCUMENT[level]]
        for tag_hex, vr, document, attribute in self.told:
            if document:
                found[tag_hex] = row[document].get(tag_hex) or {"vr": vr}
            elif attribute.computed:
                values = _derived(attribute, row)
                found[tag_hex] = {"vr": vr, "Value": values} if values else {"vr": vr}
            else:
                found[tag_hex] = {"vr": vr, "Value": [row[attribute.keyword]]}
        return dict(sorted(found.items())) if self.everything else found


def _derived(attribute: Attribute, row: Mapping[str, Any]) -> list[Any]:
    if attribute.keyword == "InstanceAvailability":
        return ["ONLINE"]
    over = _OF_VISIBLE.get(attribute.keyword)
    value = row[attribute.keyword] if over is None else over(row["of_visible"] or [])
    if isinstance(value, list):
        return sorted({part for text in value for part in text.split(SEVERAL) if part})
    return [] if value is None else [value if isinstance(value, str) else int(value)]
