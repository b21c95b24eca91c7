"""Queries of an archive of 1,000,000 instances: `python -m benchmarks.query --studies 100000 --users 50 --grants 2000 [--postgresql URL]`.

The rows are made up from a seed and kept in `--folder`; every shape is asked `--calls` times with other values, as someone with grants
on single studies and series and as someone who may see everything. Printed are milliseconds of the search alone, p50 and p95: processor
time with SQLite, which works here, time by the clock with PostgreSQL.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.access import policy
from archive.access.permissions import OBJECT, Permission
from archive.access.subject import Subject
from archive.db import guard, migrate
from archive.db.engine import Database
from archive.db.tables import metadata
from archive.db.types import FOREVER, to_micros
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.dicom.matching import normal, parse
from archive.index import search

AT = datetime(2026, 6, 1, tzinfo=UTC)
KEY = bytes(range(32))
FAMILY = [
    "Müller", "Nowák", "Wójcik", "Smith", "Jones", "Taylor", "Brown", "Wilson", "Iwanow", "Petrowa", "Otani", "Nguyen", "Garcia",
    "Nuñez", "Lefèvre", "Sørensen", "Åkesson", "Schmidt", "Schneider", "Fischer", "Weber", "Meyer", "Wagner", "Becker", "Schulz",
    "Hoffmann", "Koch", "Bauer", "Richter", "Klein", "Wolf", "Neumann", "Schwarz", "Zimmermann", "Braun", "Krüger", "Hartmann",
    "Lange", "Werner", "Krause", "Lehmann", "Köhler", "Maier", "Herrmann", "König", "Walter", "Mayer", "Huber", "Kaiser", "Fuchs",
    "Peters", "Lang", "Scholz", "Möller", "Weiß",
]  # fmt: skip
GIVEN = [
    "Ann", "Bob", "Carol", "Dan", "Eve", "Frank", "Jörg", "Zoë", "José", "René", "Inês", "Łukasz", "Jiří", "Ágnes", "Olga", "Juri",
    "Nikos", "Eleni", "Kenji", "Siobhan", "Hanako", "Tarou",
]  # fmt: skip
MODALITIES = ["CT", "MR", "US", "CR", "DX", "MG", "NM", "PT", "XA", "SR"]
WEIGHTS = [25, 20, 18, 15, 10, 5, 2, 2, 2, 1]
_IMAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    modality: f"{_IMAGE}{end}"
    for modality, end in zip(MODALITIES, ("2", "4", "6.1", "1", "1.1", "1.2", "20", "128", "12.1", "88.11"), strict=True)
}
FIRST_DAY = date(2016, 1, 1)
DAYS = 3650
TOKEN = policy.system("verify")


def main() -> int:
    """Build what is missing, measure, print."""
    options = _options()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, database in _databases(options):
        _build(database, options)
        gc.collect()
        gc.freeze()  # as the served archive does: going through what is loaded takes 50 ms
        print(f"\n{name}: {options.studies} studies, {options.users} users with {options.grants} + {options.grants // 10} grants, "
              f"{options.calls} calls, ms")
        print(f"{'shape':34} {'some p50':>9} {'p95':>7} {'all p50':>9} {'p95':>7}   rows")
        for shape, make in SHAPES.items():
            if options.only and options.only not in shape:
                continue
            cells, rows = [], []
            for everything in (False, True):
                times, found = _measure(database, make, options, everything=everything)
                cells += [statistics.median(times), sorted(times)[int(len(times) * 0.95)]]
                rows.append(statistics.median(found))
            print(f"{shape:34} {cells[0]:9.2f} {cells[1]:7.2f} {cells[2]:9.2f} {cells[3]:7.2f}   {rows[0]:.0f} / {rows[1]:.0f}", flush=True)
        database.close()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.query", description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--grants", type=int, default=2_000, help="studies granted to each user; a tenth as many series besides")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--only", default="", help="shapes whose name holds this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/strongroom-query"))
    parser.add_argument("--postgresql", metavar="URL", help="an empty database, or one filled by an earlier run")
    parser.add_argument("--no-sqlite", action="store_true")
    return parser.parse_args()


def _databases(options: argparse.Namespace) -> Iterator[tuple[str, Database]]:
    if not options.no_sqlite:
        name = f"index-{options.studies}-{options.users}-{options.grants}-{options.seed}.db"
        path = options.folder / name
        yield "SQLite (SQLCipher)", Database.embedded(path, KEY, options.folder / "writer.lock")
    if options.postgresql:
        yield "PostgreSQL", Database(options.postgresql)


# --- the archive ---


def _build(database: Database, options: argparse.Namespace) -> None:
    migrate.upgrade(database)
    with database.read() as tx:
        if tx.execute(sa.text("SELECT 1 FROM archive_state WHERE name = 'benchmark'")).first():
            return
    started = time.monotonic()
    catalog = _Catalog(random.Random(options.seed), options.studies)  # made up, and the same each time
    for batch in catalog.batches():
        with database.begin(durable=False) as tx:
            if database.sqlite:
                tx.exec_driver_sql("PRAGMA cache_size = -400000")
            for table, rows in batch.items():
                _insert(tx, table, rows)
    with database.begin() as tx:
        for table, rows in catalog.access(options.users, options.grants).items():
            _insert(tx, table, rows)
        if database.sqlite:
            tx.execute(sa.text("INSERT INTO study_name_fts (rowid, folded) SELECT id, patient_name_folded FROM study"),
                       execution_options={guard.OPTION: TOKEN})
        else:
            for table in ("datastore", "principal", "patient", "study", "series", "instance", "grants"):
                tx.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"),
                           execution_options={guard.OPTION: TOKEN})
        tx.execute(sa.text("INSERT INTO archive_state (name, value) VALUES ('benchmark', 'built')"))
    if not database.sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))
    print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr)


def _insert(tx: sa.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    names = list(rows[0])
    if tx.dialect.name == "postgresql":
        connection: Any = tx.connection.driver_connection
        quoted = ", ".join(f'"{name}"' for name in names)
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({quoted}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([row[name] for name in names])
        return
    for start in range(0, len(rows), 10_000):
        policy.run_as(tx, TOKEN, sa.insert(_plain(table)), rows[start : start + 10_000])


def _plain(table: str) -> sa.TableClause:
    """The table without types: values are given as the driver takes them."""
    return sa.table(table, *(sa.column(column.name) for column in metadata.tables[table].columns))


class _Catalog:
    """The rows of an archive, in order of their keys."""

    def __init__(self, r: random.Random, studies: int) -> None:
        self.r = r
        self.studies = studies
        self.series_of: list[list[int]] = []
        self.n_series = 0
        self.n_instances = 0
        self.at = to_micros(AT)

    def batches(self) -> Iterator[dict[str, list[dict[str, Any]]]]:
        places = ((1, "clinical"), (2, "other"))
        yield {"datastore": [{"id": n, "uid": bytes([n]) * 16, "name": name, "created_at": self.at} for n, name in places]}
        patients = [self._patient(n) for n in range(1, self.studies * 6 // 10 + 1)]
        yield {"patient": [{key: value for key, value in one.items() if not key.startswith("_")} for one in patients]}
        for start in range(1, self.studies + 1, 5_000):
            batch: dict[str, list[dict[str, Any]]] = {"study": [], "series": [], "instance": []}
            for number in range(start, min(start + 5_000, self.studies + 1)):
                self._study(number, patients[self.r.randrange(len(patients))], batch)
            yield batch

    def _patient(self, n: int) -> dict[str, Any]:
        name = f"{self.r.choice(FAMILY)}{self.r.choice(['', '', 'er', 'son', 'ski'])}^{self.r.choice(GIVEN)}"
        return {
            "id": n, "datastore_id": 1, "issuer": "CLINIC", "patient_id": f"P{n:07}", "synthetic": False, "patient_name": name,
            "patient_birth_date": f"{self.r.randint(1930, 2015)}{self.r.randint(1, 12):02}{self.r.randint(1, 28):02}",
            "patient_sex": self.r.choice("MFO"), "created_at": self.at,
        }

    def _study(self, number: int, of: dict[str, Any], batch: dict[str, list[dict[str, Any]]]) -> None:
        r = self.r
        # mostly in the order they arrived, as archives grow
        day = FIRST_DAY + timedelta(days=min(DAYS, max(0, number * DAYS // self.studies + r.choice([0, 0, 0, 0, -1, -2, -400]))))
        at_time = f"{r.randint(7, 18):02}{r.randint(0, 59):02}{r.randint(0, 59):02}"
        uid, when = f"1.2.826.0.1.3680043.10.1451.1.{number:015}", day.strftime("%Y%m%d")
        description = r.choice(["THORAX", "ABDOMEN ROUTINE", "HEAD W/O", "KNEE PD FS", "CHEST PA", "Report"])
        held = {
            "0020000D": ("UI", uid), "00080020": ("DA", when), "00080030": ("TM", at_time), "00080050": ("SH", f"A{number:08}"),
            "00081030": ("LO", description), "00100020": ("LO", of["patient_id"]), "00100021": ("LO", "CLINIC"),
            "00100030": ("DA", of["patient_birth_date"]), "00100040": ("CS", of["patient_sex"]), "00200010": ("SH", str(number)),
            "00080090": ("PN", {"Alphabetic": "House^Gregory"}), "00100010": ("PN", {"Alphabetic": of["patient_name"]}),
        }
        series, instances = [], 0
        modality = r.choices(MODALITIES, WEIGHTS)[0]
        for n in range(r.choices([1, 2, 3, 4, 6], [30, 30, 20, 12, 8])[0]):
            self.n_series += 1
            series.append(self.n_series)
            kind = modality if n < 4 else "SR"
            count = min(30, max(1, int(r.expovariate(1 / 4))))
            instances += count
            batch["series"].append(self._series(number, n, kind, when, of["id"], uid, count))
            batch["instance"] += (self._instance(number, i, uid, kind) for i in range(count))
        self.series_of.append(series)
        batch["study"].append({
            "id": number, "datastore_id": 1, "patient_pk": of["id"], "study_instance_uid": uid, "key_id": bytes(16),
            "patient_name": of["patient_name"], "patient_name_folded": normal(BY_KEYWORD["PatientName"], of["patient_name"]),
            "patient_id": of["patient_id"], "issuer_of_patient_id": "CLINIC", "patient_birth_date": of["patient_birth_date"],
            "patient_sex": of["patient_sex"], "study_date": when, "study_time": normal(BY_KEYWORD["StudyTime"], at_time),
            "accession_number": f"A{number:08}", "study_id": str(number), "study_description": description,
            "study_description_folded": normal(BY_KEYWORD["StudyDescription"], description),
            "referring_physician_name": "House^Gregory",
            "referring_physician_name_folded": normal(BY_KEYWORD["ReferringPhysicianName"], "House^Gregory"),
            "attributes": _json(held), "normalised": None, "n_series": len(series), "n_instances": instances,
            "created_at": self.at, "updated_at": self.at,
        })

    def _series(self, study: int, n: int, modality: str, when: str, patient: int, uid: str, count: int) -> dict[str, Any]:
        text = f"{modality} {n + 1}"
        held = {
            "0020000E": ("UI", f"{uid}.{n}"), "00080060": ("CS", modality), "00200011": ("IS", n + 1), "0008103E": ("LO", text),
            "00180015": ("CS", "CHEST"), "00080070": ("LO", "SIEMENS"), "00181030": ("LO", "P01"), "00080021": ("DA", when),
        }
        return {
            "id": self.n_series, "datastore_id": 1, "patient_pk": patient, "study_pk": study, "study_date": when, "department_id": None,
            "restricted": False, "series_instance_uid": f"{uid}.{n}", "modality": modality, "series_number": n + 1,
            "series_description": text, "series_description_folded": text.lower(), "body_part_examined": "CHEST",
            "attributes": _json(held), "normalised": None, "n_instances": count, "generation": count, "created_at": self.at,
            "updated_at": self.at,
        }

    def _instance(self, study: int, i: int, uid: str, modality: str) -> dict[str, Any]:
        self.n_instances += 1
        number = self.n_instances
        return {
            "id": number, "datastore_id": 1, "study_pk": study, "series_pk": self.n_series, "sop_instance_uid": f"{uid}.{number}",
            "sop_class_uid": _CLASSES[modality], "transfer_syntax_uid": "1.2.840.10008.1.2.1", "instance_number": i + 1,
            "rows": 512, "columns": 512, "bits_allocated": 16, "number_of_frames": None, "attributes": _INSTANCE, "normalised": None,
            "object_id": number.to_bytes(16, "big"), "key_id": bytes(16), "segment_id": bytes(16), "record_offset": number * 8192,
            "record_bytes": 8192, "record_kind": 1, "plaintext_bytes": 8000, "part10_bytes": 7000, "dataset_offset": 340,
            "sha256": number.to_bytes(32, "big"), "leaf": number, "stored_at": self.at,
        }

    def access(self, users: int, count: int) -> dict[str, list[dict[str, Any]]]:
        """Users with grants on single studies and series, each in two groups of which one has grants too, and one who sees everything."""
        r = self.r
        always = {"not_before": 0, "not_after": to_micros(FOREVER)}
        usual = {"enabled": True, "created_at": self.at, "security_epoch": 0}
        people = [{"id": n, "kind": "user", "name": f"user{n}", **usual} for n in range(1, users + 2)]
        groups = [{"id": 1000 + n, "kind": "group", "name": f"group{n}", **usual} for n in (1, 2)]
        members = [{"id": n, "principal_id": n, "group_id": 1001 + n % 2, **always} for n in range(1, users + 1)]
        rows = [self._grant(users + 1, 0)]
        for user in range(1, users + 1):
            rows += [self._grant(user, study * 4 + 2) for study in r.sample(range(1, self.studies + 1), count)]
            rows += [self._grant(user, r.choice(self.series_of[study]) * 4 + 3) for study in r.sample(range(self.studies), count // 10)]
        rows += [self._grant(group["id"], study * 4 + 2) for group in groups for study in r.sample(range(1, self.studies + 1), 100)]
        return {"principal": people + groups, "membership": members, "grants": [{"id": n, **row} for n, row in enumerate(rows, 1)]}

    def _grant(self, subject: int, scope: int) -> dict[str, Any]:
        return {
            "datastore_id": 1, "subject_id": subject, "effect": 1, "permissions": int(OBJECT & ~Permission.RESTRICTED), "scope_key": scope,
            "not_before": 0, "not_after": to_micros(FOREVER), "created_at": self.at,
        }


def _json(held: dict[str, tuple[str, Any]]) -> str:
    return msgspec.json.encode({tag: {"vr": vr, "Value": [value]} for tag, (vr, value) in held.items()}).decode()


_INSTANCE = _json({
    "00200013": ("IS", 1), "00280010": ("US", 512), "00280011": ("US", 512), "00280100": ("US", 16), "00080008": ("CS", "ORIGINAL"),
    "00080023": ("DA", "20260101"), "00201041": ("DS", 12.5), "00180050": ("DS", 5),
})


# --- the questions ---

Ask = Callable[[random.Random, argparse.Namespace], tuple[Level, dict[str, str], dict[str, Any]]]


def _studies(keys: Callable[[random.Random, int], dict[str, str]], **options: Any) -> Ask:
    return _at(Level.STUDY, keys, **options)


def _at(level: Level, keys: Callable[[random.Random, int], dict[str, str]], **options: Any) -> Ask:
    return lambda r, o: (level, keys(r, o.studies), {"limit": 50, "total": False, **options})


def _range(r: random.Random, days: int) -> str:
    first = FIRST_DAY + timedelta(days=r.randrange(DAYS - days))
    return f"{first:%Y%m%d}-{first + timedelta(days=days - 1):%Y%m%d}"


def _fragment(r: random.Random, length: int) -> str:
    name = r.choice(FAMILY)
    start = r.randrange(max(1, len(name) - length))
    return name[start : start + length]


_UID = "1.2.826.0.1.3680043.10.1451.1."
SHAPES: dict[str, Ask] = {
    "name prefix": _studies(lambda r, _n: {"PatientName": f"{r.choice(FAMILY)}^{r.choice(GIVEN)[0]}*"}),
    "name prefix, short": _studies(lambda r, _n: {"PatientName": f"{r.choice(FAMILY)[:4]}*"}),
    "wildcard *xxxx*": _studies(lambda r, _n: {"PatientName": f"*{_fragment(r, 4)}*"}),
    "wildcard *xx*": _studies(lambda r, _n: {"PatientName": f"*{_fragment(r, 2)}*"}),
    "wildcard that nobody has": _studies(lambda r, _n: {"PatientName": f"*q{r.randrange(10)}z*"}),
    "28 days": _studies(lambda r, _n: {"StudyDate": _range(r, 28)}),
    "newest 50": _studies(lambda _r, _n: {}),
    "newest 50 with total": _studies(lambda _r, _n: {}, total=True),
    "page from 1,500": _studies(lambda _r, _n: {}, offset=1500),
    "page from 90,000": _studies(lambda _r, _n: {}, offset=90_000),
    "modality, 28 days": _studies(lambda r, _n: {"ModalitiesInStudy": r.choice(MODALITIES), "StudyDate": _range(r, 28)}),
    "modality": _studies(lambda r, _n: {"ModalitiesInStudy": r.choice(MODALITIES[:6])}),
    "modality, rare": _studies(lambda r, _n: {"ModalitiesInStudy": r.choice(MODALITIES[6:9])}),
    "description": _studies(lambda _r, _n: {"StudyDescription": "*knee*"}),
    "accession": _studies(lambda r, n: {"AccessionNumber": f"A{r.randint(1, n):08}"}),
    "PatientID": _studies(lambda r, n: {"PatientID": f"P{r.randint(1, n // 2):07}"}),
    "StudyInstanceUID": _studies(lambda r, n: {"StudyInstanceUID": f"1.2.826.0.1.3680043.10.1451.1.{r.randint(1, n):015}"}),
    "28 days with total": _studies(lambda r, _n: {"StudyDate": _range(r, 28)}, total=True),
    "modality with total": _studies(lambda r, _n: {"ModalitiesInStudy": r.choice(MODALITIES[:6])}, total=True),
    "name prefix with total": _studies(lambda r, _n: {"PatientName": f"{r.choice(FAMILY)[:4]}*"}, total=True),
    "patients by name": _at(Level.PATIENT, lambda r, _n: {"PatientName": f"{r.choice(FAMILY)[:4]}*"}),
    "patients, first 50": _at(Level.PATIENT, lambda _r, _n: {}),
    "patients from 1,500": _at(Level.PATIENT, lambda _r, _n: {}, offset=1500),
    "patients with total": _at(Level.PATIENT, lambda _r, _n: {}, total=True),
    "patient by PatientID": _at(Level.PATIENT, lambda r, n: {"PatientID": f"P{r.randint(1, n // 2):07}"}),
    "patients of 28 days": _at(Level.PATIENT, lambda r, _n: {"StudyDate": _range(r, 28)}),
    "series, first 50": _at(Level.SERIES, lambda _r, _n: {}),
    "series by modality": _at(Level.SERIES, lambda r, _n: {"Modality": r.choice(MODALITIES[:6])}),
    "series by rare modality": _at(Level.SERIES, lambda r, _n: {"Modality": r.choice(MODALITIES[6:9])}),
    "series by description": _at(Level.SERIES, lambda r, _n: {"SeriesDescription": f"*{r.choice(MODALITIES)} {r.randint(1, 4)}*"}),
    "series by date of study": _at(Level.SERIES, lambda r, _n: {"StudyDate": _range(r, 28)}),
    "series by modality, 28 days": _at(Level.SERIES, lambda r, _n: {"StudyDate": _range(r, 28), "Modality": r.choice(MODALITIES)}),
    "series by PatientID": _at(Level.SERIES, lambda r, n: {"PatientID": f"P{r.randint(1, n // 2):07}"}),
    "series by PatientName": _at(Level.SERIES, lambda r, _n: {"PatientName": f"{r.choice(FAMILY)[:4]}*"}),
    "series by SeriesInstanceUID": _at(Level.SERIES, lambda r, n: {"SeriesInstanceUID": f"{_UID}{r.randint(1, n):015}.0"}),
    "instances, first 50": _at(Level.IMAGE, lambda _r, _n: {}),
    "instances by SOP class": _at(Level.IMAGE, lambda r, _n: {"SOPClassUID": _CLASSES[r.choice(MODALITIES[:6])]}),
    "instances by rare SOP class": _at(Level.IMAGE, lambda r, _n: {"SOPClassUID": _CLASSES[r.choice(MODALITIES[6:9])]}),
    "instances by date of study": _at(Level.IMAGE, lambda r, _n: {"StudyDate": _range(r, 28)}),
    "instances by PatientID": _at(Level.IMAGE, lambda r, n: {"PatientID": f"P{r.randint(1, n // 2):07}"}),
    "instance by SOPInstanceUID": _at(Level.IMAGE, lambda r, n: {"SOPInstanceUID": f"{_UID}{r.randint(1, n):015}.{r.randint(1, n)}"}),
    "series of a study": lambda r, o: (Level.SERIES, {}, {"study_instance_uid": f"{_UID}{r.randint(1, o.studies):015}"}),
    "instances of a study": lambda r, o: (Level.IMAGE, {}, {"study_instance_uid": f"{_UID}{r.randint(1, o.studies):015}"}),
}


def _measure(database: Database, ask: Ask, options: argparse.Namespace, *, everything: bool) -> tuple[list[float], list[int]]:
    r = random.Random(options.seed + 7)  # the same questions each time
    times, found = [], []
    for call in range(-12, options.calls):
        number = options.users + 1 if everything else r.randint(1, options.users)
        scope = policy.scope_of(Subject(number, f"user{number}", "user", "web"), Permission.SEARCH, AT)
        level, keys, how = ask(r, options)
        terms = tuple((BY_KEYWORD[name], parse(BY_KEYWORD[name], text)) for name, text in keys.items())
        query = search.SearchQuery(level, 1, terms, **how)
        with database.read() as tx:
            clock = time.thread_time if database.sqlite else time.perf_counter
            started = clock()
            page = search.find(tx, scope, query)
            took = (clock() - started) * 1000
        if call >= 0:
            times.append(took)
            found.append(len(page.rows))
    return times, found


if __name__ == "__main__":
    sys.exit(main())
