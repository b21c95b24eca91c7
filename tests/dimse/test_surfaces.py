"""One predicate: under whatever grants, C-FIND, C-GET, C-MOVE and the services behind DICOMweb show a peer the same instances."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import evt

from archive.access import principals
from archive.access.grants import Target
from archive.access.subject import Subject
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.errors import NotFound
from archive.services.query import SearchRequest
from tests.dimse.clinic import FIND, GET, MOVE, Clinic, Receiver, clinic, identifier
from tests.services.archives import CT, instance, the_console

STUDIES = {f"1.2.{n}": f"P{n // 2}" for n in range(3, 9)}


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Clinic]:
    """Six studies of two series each, of four patients."""
    database = {"database": {"url": request.getfixturevalue("postgresql_url")}} if request.param == "postgresql" else {}
    with clinic(tmp_path, sections=database) as it:
        for study, patient in STUDIES.items():
            it.put(*(instance(1, study=study, series=f"{study}.{n}", PatientID=patient, SeriesNumber=n) for n in (1, 2)))
        yield it


def through_dimse(it: Clinic, receiver: Receiver) -> dict[str, set[str]]:
    """The SOP Instance UIDs that each operation shows."""
    relational, shown = dict.fromkeys((FIND, GET, MOVE), b"\x01"), {}
    got: set[str] = set()
    studies = identifier("STUDY", StudyInstanceUID=list(STUDIES))

    def keeps(event: Any) -> int:
        got.add(str(event.request.AffectedSOPInstanceUID))
        return 0

    with it.association(
        "WS", FIND, GET, MOVE, storage=[CT], extended=relational, evt_handlers=[(evt.EVT_C_STORE, keeps)]
    ) as association:
        found = [one for _, one in association.send_c_find(identifier("IMAGE", SOPInstanceUID=""), FIND) if one is not None]
        shown["C-FIND"] = {str(one.SOPInstanceUID) for one in found}
        counted = [one for _, one in association.send_c_find(
            identifier("STUDY", StudyInstanceUID="", NumberOfStudyRelatedInstances=""), FIND) if one is not None]
        assert sum(int(one.NumberOfStudyRelatedInstances) for one in counted) == len(shown["C-FIND"])
        list(association.send_c_get(studies, GET))
        shown["C-GET"] = got
        receiver.received.clear()
        list(association.send_c_move(studies, "WS", MOVE))
        shown["C-MOVE"] = {uid for uid, _, _ in receiver.received}
    return shown


def through_services(it: Clinic, subject: Subject) -> dict[str, set[str]]:
    request = SearchRequest(Level.IMAGE, "clinical", (), include=(BY_KEYWORD["SOPInstanceUID"],))
    shown = {"search": {row["00080018"]["Value"][0] for row in it.node.query.find(subject, request).rows}, "instances": set()}
    for study in STUDIES:
        try:
            shown["instances"] |= {found.sop_instance_uid for found in it.node.retrieve.instances(subject, "clinical", study)}
        except NotFound:
            continue
    return shown


def test_the_same_everywhere(made: Clinic) -> None:
    receiver = Receiver("WS")
    chance = random.Random(4)
    try:
        made.plain_peer("WS", port=receiver.port, target=Target("series", "1.2.3.1"))
        with made.node.core.database.read() as tx:
            row = principals.find(tx, "WS", ("device",))
        subject = Subject(row["id"], "WS", "device", "dimse")
        sizes = set()
        for _ in range(9):
            study = chance.choice(list(STUDIES))
            target = chance.choice([
                Target("study", study), Target("series", f"{study}.{chance.choice((1, 2))}"), Target("patient", STUDIES[study]),
            ])
            made.node.accounts.add_grant(
                the_console(made.node), to="WS", role="workstation", target=target, deny=chance.random() < 0.35,
                modality=chance.choice(["", "", "CT", "MR"]),
            )
            shown = through_dimse(made, receiver) | through_services(made, subject)
            assert len({frozenset(uids) for uids in shown.values()}) == 1, shown
            sizes.add(len(shown["search"]))
        assert len(sizes) > 2
    finally:
        receiver.close()
