"""T14: under whatever grants, every surface of the web shows a user the same instances, and counts no others.

Each world is drawn by a seed: users and a group, allows and denials at every level, some of one modality or of a time to come. What plain
rules say is compared with searches and totals, retrieval, metadata, zips, pictures, WADO-URI, the change feed, a webhook, workitems and
performed procedure steps. tests/dimse/test_surfaces.py does so for C-FIND, C-GET and C-MOVE.
"""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pydicom
import pytest
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.access.subject import Subject
from tests.dimse.test_mpps import begun
from tests.services import archives
from tests.web import real
from tests.web.dicomweb.test_ups import item
from tests.web.real import Place
from tests.web.test_changes import Receiver

PATIENTS = {"1.2.81": "P1", "1.2.82": "P1", "1.2.83": "P2", "1.2.84": "P3"}
MODALITIES = {1: "CT", 2: "MR"}
ALL = [(study, series, number) for study in PATIENTS for series in MODALITIES for number in (1, 2)]
SEEDS = (5, 9)
"""Worlds in which one user sees nothing, one or a few series, others more; range(12) has been tried."""
WORK = "1.2.840.77."


def sop(study: str, series: int, number: int) -> str:
    return f"{study}.{series}.{number}"


def where(study: str, series: int, number: int) -> str:
    return f"/dicomweb/studies/{study}/series/{study}.{series}/instances/{sop(study, series, number)}"


@dataclass(frozen=True)
class Grant:
    """What was given, as plain rules read it."""

    deny: bool
    level: str
    study: str
    series: int
    modality: str
    begun: bool

    def covers(self, study: str, series: int) -> bool:
        if not self.begun or self.modality not in ("", MODALITIES[series]):
            return False
        return {
            "everything": True, "patient": PATIENTS[study] == PATIENTS[self.study], "study": study == self.study,
            "series": (study, series) == (self.study, self.series),
        }[self.level]

    def target(self) -> Target:
        named = {"everything": "", "patient": PATIENTS[self.study], "study": self.study, "series": f"{self.study}.{self.series}"}
        return Target("everything") if self.level == "everything" else Target(self.level, named[self.level])  # type: ignore[arg-type]


def drawn(chance: random.Random) -> Grant:
    return Grant(
        chance.random() < 0.3, chance.choice(["everything", "patient", "study", "series", "series"]), chance.choice(list(PATIENTS)),
        chance.choice((1, 2)), chance.choice(["", "", "", "CT", "MR"]), chance.random() < 0.85,
    )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Four studies of three patients; each with a workitem and a performed procedure step."""
    sections: dict[str, Any] = {"archive": {"public_url": real.ORIGIN}, "webhooks": {"networks": ["127.0.0.0/8"]}}
    if request.param == "postgresql":
        sections["database"] = {"url": request.getfixturevalue("own_database")}
    with archives.opened(archives.made(tmp_path_factory.mktemp("t14"), **sections)) as node:
        made = real.place(node)
        console = archives.the_console(node)
        for study, series, number in ALL:
            archives.store(node, archives.instance(
                number, study=study, series=f"{study}.{series}", PatientID=PATIENTS[study], Modality=MODALITIES[series],
                SeriesNumber=series,
            ))
        node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("everything"))
        node.peers.add(console, "CT1", ["CT1"], issue=node.config.storage_dir / "CT1", roles=["modality"])
        with node.core.database.read() as tx:
            from archive.access import principals

            device = Subject(principals.find(tx, "CT1", ("device",))["id"], "CT1", "device", "dimse")
        for n, study in enumerate(PATIENTS):
            step = begun(n, PatientID=PATIENTS[study])
            step.ScheduledStepAttributesSequence[0].StudyInstanceUID = study
            node.steps.create(device, "clinical", f"1.2.840.78.{n}", json.loads(step.to_json()))
            answer = made.ask(
                "POST", f"/dicomweb/workitems?{WORK}{study}", content_type="application/dicom+json",
                data=json.dumps([item(patient=PATIENTS[study], study=study)]),
            )
            assert answer.status_code == 201, answer.text
        yield made


@pytest.fixture(scope="module")
def own_database(postgresql_server: str) -> Iterator[str]:
    """A PostgreSQL database of this module's."""
    import secrets

    import psycopg

    name, admin = "t" + secrets.token_hex(6), postgresql_server.replace("+psycopg", "") + "postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    yield postgresql_server + name
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


class Asker:
    """A new user; every method returns the SOP Instance UIDs one surface shows."""

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.name = place, name
        node, console = place.node, archives.the_console(place.node)
        node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        self.token = node.accounts.create_token(console, owner=name)["token"]
        self.subject = archives.user(node, name)

    def get(self, path: str, accept: str = "*/*") -> TestResponse:
        answer = self.place.ask("GET", path, headers={"Authorization": f"Bearer {self.token}", "Accept": accept})
        assert answer.status_code in {200, 204, 404}, (path, answer.text)
        return answer

    def rows(self, path: str) -> list[dict[str, Any]]:
        """What a search answers; its total is of the same."""
        answer = self.get(path)
        found = list(answer.json or [])
        assert int(answer.headers["X-Total-Count"]) == len(found)
        return found

    def there(self, paths: dict[str, str]) -> set[str]:
        """Those of what is asked for one by one that are there."""
        return {uid for uid, path in paths.items() if self.get(path).status_code == 200}

    def surfaces(self) -> dict[str, set[str]]:
        each = {sop(*one): where(*one) for one in ALL}
        studies = [f"/dicomweb/studies/{study}" for study in PATIENTS]
        series = [f"{path}/series/{path.rpartition('/')[2]}.{number}" for path in studies for number in MODALITIES]
        shown = {"instances": uids(self.rows("/dicomweb/instances"))}
        for name, paths in (("instances of studies", studies), ("instances of series", series)):
            shown[name] = set().union(*(uids(self.rows(f"{path}/instances")) for path in paths))
        for name, paths in (("metadata of studies", studies), ("metadata of series", series)):
            shown[name] = set().union(*(uids(answer.json) for path in paths if (answer := self.get(f"{path}/metadata")).status_code == 200))
        for name, paths in (("studies", studies), ("series", series)):
            answers = [self.get(path, 'multipart/related; type="application/dicom"; transfer-syntax=*') for path in paths]
            shown[name] = set().union(*(of_parts(answer.data) for answer in answers if answer.status_code == 200))
            answers = [self.get(f"{path}/zip") for path in paths]
            shown[f"zips of {name}"] = set().union(*(of_zip(answer.data) for answer in answers if answer.status_code == 200))
        for name in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulk/7FE00010"):
            shown[f"instance{name}"] = self.there({uid: path + name for uid, path in each.items()})
        shown["WADO-URI"] = self.there({
            sop(*one): f"/dicomweb/wado?requestType=WADO&studyUID={one[0]}&seriesUID={one[0]}.{one[1]}&objectUID={sop(*one)}" for one in ALL
        })
        fed = self.get("/api/changes?limit=1000").json
        assert fed["more"] is False
        shown["changes"] = {one["sop_instance_uid"] for one in fed["changes"]}
        return {name: ours(found) for name, found in shown.items()}

    def studies(self) -> dict[str, set[str]]:
        """The studies each surface shows that tells of no instance."""
        rows = {row["0020000D"]["Value"][0]: row for row in self.rows("/dicomweb/studies?includefield=all")}
        work = self.get("/dicomweb/workitems").json or []
        steps = self.place.node.steps
        shown = {
            "search": set(rows), "pictures": self.there({study: f"/dicomweb/studies/{study}/thumbnail" for study in PATIENTS}),
            "rendered": self.there({study: f"/dicomweb/studies/{study}/rendered" for study in PATIENTS}),
            "steps": {study for study in PATIENTS if steps.of_study(self.subject, "clinical", study)},
            "workitems": {row["00080018"]["Value"][0].removeprefix(WORK) for row in work},
            "workitem": self.there({study: f"/dicomweb/workitems/{WORK}{study}" for study in PATIENTS}),
        }
        return {name: found - {real.SEEN, real.HIDDEN} for name, found in shown.items()}

    def counted(self) -> dict[str, tuple[int, int, tuple[str, ...]]]:
        """Of each study its series, its instances and its modalities, as a search counts them."""
        rows = self.rows("/dicomweb/studies?includefield=all")
        return {
            row["0020000D"]["Value"][0]: (
                row["00201206"]["Value"][0], row["00201208"]["Value"][0], tuple(sorted(row["00080061"]["Value"])),
            ) for row in rows if row["0020000D"]["Value"][0] in PATIENTS
        }


def ours(found: Iterable[str]) -> set[str]:
    """Without the studies every such archive has."""
    return {uid for uid in found if not uid.startswith((f"{real.SEEN}.", f"{real.HIDDEN}."))}


def uids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["00080018"]["Value"][0] for row in rows}


def of_parts(body: bytes) -> set[str]:
    return {found.decode() for found in re.findall(rb"\x08\x00\x18\x00UI..([0-9.]+)", body, re.DOTALL)}


def of_zip(body: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(body)) as made:
        directory = pydicom.dcmread(io.BytesIO(made.read("DICOMDIR")))
        named = {str(one.ReferencedSOPInstanceUIDInFile) for one in directory.DirectoryRecordSequence if "ReferencedFileID" in one}
        assert len(made.namelist()) == len(named) + 1
    return named


def test_no_role_shows_anything_on_any_surface(place: Place) -> None:
    """Every role there is, all assigned to one, and no grant: nothing, to a token with everything named."""
    from archive.access import roles
    from archive.access.permissions import BUILTIN_ROLES, FUNCTION, OBJECT

    console, accounts = archives.the_console(place.node), place.node.accounts
    everyone = Asker(place, "everyone")
    for name in BUILTIN_ROLES:
        accounts.assign_role(console, "everyone", name)
    everyone.token = accounts.create_token(console, owner="everyone", permissions=roles.names(OBJECT | FUNCTION))["token"]
    shown = everyone.surfaces() | everyone.studies()
    assert len(shown) > 20
    assert {name: found for name, found in shown.items() if found} == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_t14_every_surface_shows_the_same(place: Place, seed: int) -> None:
    chance = random.Random(seed)
    console, accounts = archives.the_console(place.node), place.node.accounts
    users = [Asker(place, f"u{seed}{n}") for n in range(2)]
    group = f"g{seed}"
    accounts.add_group(console, group)
    for user in users:
        accounts.join_group(console, group, user.name)
    given: dict[str, list[Grant]] = {user.name: [] for user in users} | {group: []}
    for _ in range(chance.randint(3, 9)):
        one, to = drawn(chance), chance.choice(list(given))
        accounts.add_grant(
            console, to=to, role="radiologist", target=one.target(), deny=one.deny, modality=one.modality,
            since=None if one.begun else datetime.now(UTC) + timedelta(days=1),
        )
        given[to].append(one)
    for user in users:
        mine = given[user.name] + given[group]
        series = {
            (study, number) for study in PATIENTS for number in MODALITIES
            if any(one.covers(study, number) for one in mine if not one.deny)
            and not any(one.covers(study, number) for one in mine if one.deny)
        }
        visible = {sop(*one) for one in ALL if one[:2] in series}
        wrong = {name: found ^ visible for name, found in user.surfaces().items() if found != visible}
        assert not wrong, mine
        studies = {study for study, _ in series}
        wrong = {name: found ^ studies for name, found in user.studies().items() if found != studies}
        assert not wrong, mine
        assert user.counted() == {
            study: (len(of), 2 * len(of), tuple(sorted(MODALITIES[number] for number in of)))
            for study in studies for of in [[number for one, number in series if one == study]]
        }
        receiver = Receiver()
        try:
            hook = place.node.webhooks.add(console, url=receiver.url, owner=user.name, everything=True)
            while place.node.webhooks.tick():
                pass
            assert ours(receiver.uids()) == visible, mine
            place.node.webhooks.remove(console, hook["id"])
        finally:
            receiver.server.shutdown()
            receiver.server.server_close()
