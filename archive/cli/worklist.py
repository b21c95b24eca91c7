"""`archive worklist`: what the modalities are to acquire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archive.cli import failures
from archive.cli.main import Group
from archive.cli.session import Session
from archive.errors import InvalidRequest, StateConflict

if TYPE_CHECKING:
    from archive.dicom.scheduled import DataSet

DATASTORE = click.option("--datastore", default="clinical", show_default=True)
COLUMNS = ("id", "state", "start_date", "start_time", "station", "modality", "patient_id", "patient_name", "accession_number")
_FIELDS = {
    "patient_id": ("00100020", "LO"), "birth_date": ("00100030", "DA"), "sex": ("00100040", "CS"), "accession": ("00080050", "SH"),
    "requested_procedure_id": ("00401001", "SH"), "study": ("0020000D", "UI"),
}
_STEP_FIELDS = {
    "modality": ("00080060", "CS"), "date": ("00400002", "DA"), "time": ("00400003", "TM"), "description": ("00400007", "LO"),
    "step_id": ("00400009", "SH"), "location": ("00400011", "SH"),
}
_NAMES = {"patient_name": "00100010", "referring_physician": "00080090"}


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(worklist)


@click.group("worklist", cls=Group)
def worklist() -> None:
    """The modality worklist: what is scheduled, for whom, when and where."""


@worklist.command("add")
@click.option("--patient-id", required=True, metavar="ID")
@click.option("--patient-name", required=True, metavar="NAME", help="As DICOM writes it: Family^Given; ideographic and phonetic after =.")
@click.option("--modality", required=True, metavar="CT|MR|…")
@click.option("--date", "date", required=True, metavar="YYYYMMDD", help="Day of the procedure step.")
@click.option("--time", "time", default="000000", metavar="HHMMSS")
@click.option("--station", "stations", multiple=True, metavar="AET", help="AE title of the modality; none: any may take it.")
@click.option("--accession", metavar="NUMBER")
@click.option("--description", metavar="TEXT", help="Of the procedure step, and of the requested procedure.")
@click.option("--physician", metavar="NAME", help="Scheduled performing physician.")
@click.option("--referring-physician", metavar="NAME")
@click.option("--birth-date", metavar="YYYYMMDD")
@click.option("--sex", metavar="M|F|O")
@click.option("--step-id", metavar="ID", help="Scheduled Procedure Step ID; made when not given.")
@click.option("--requested-procedure-id", metavar="ID")
@click.option("--study", metavar="UID", help="Study Instance UID; made when not given.")
@click.option("--location", metavar="TEXT")
@DATASTORE
@click.pass_obj
def add(session: Session, /, stations: tuple[str, ...], physician: str | None, datastore: str, **given: str | None) -> None:
    """Schedule a procedure step."""
    from archive.dicom import scheduled

    dataset: dict[str, Any] = {tag: {"vr": vr, "Value": [given[name]]} for name, (tag, vr) in _FIELDS.items() if given.get(name)}
    dataset |= {tag: {"vr": "PN", "Value": [given[name]]} for name, tag in _NAMES.items() if given.get(name)}
    step: dict[str, Any] = {tag: {"vr": vr, "Value": [given[name]]} for name, (tag, vr) in _STEP_FIELDS.items() if given.get(name)}
    if stations:
        step["00400001"] = {"vr": "AE", "Value": list(stations)}
    if physician:
        step["00400006"] = {"vr": "PN", "Value": [physician]}
    if given.get("description"):
        dataset["00321060"] = {"vr": "LO", "Value": [given["description"]]}
    dataset["00400100"] = {"vr": "SQ", "Value": [step]}
    made = session.node.worklist.add(session.subject, scheduled.checked(dataset), datastore=datastore, source="console")[0]
    session.answer(made, f"entry {made['id']}: step {made['procedure_step_id']}, study {made['study_instance_uid']}")


@worklist.command("list")
@click.option("--all", "every", is_flag=True, help="Those that are over or cancelled too.")
@click.option("--date", metavar="YYYYMMDD[-YYYYMMDD]", default="", help="Of this day, or between these.")
@click.option("--station", metavar="AET", default="")
@click.option("--modality", metavar="CT|MR|…", default="")
@click.option("--patient-id", metavar="ID", default="")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@DATASTORE
@click.pass_obj
def list_(session: Session, every: bool, date: str, station: str, modality: str, patient_id: str, limit: int, datastore: str) -> None:
    """List entries, the next first."""
    from archive.services.worklist import asked

    request = asked(date=date, station=station, modality=modality, patient_id=patient_id, every=every, datastore=datastore)
    session.rows(session.node.worklist.list(session.subject, request, limit=limit), *COLUMNS)


@worklist.command("show")
@click.argument("number", type=int, metavar="ID")
@DATASTORE
@click.pass_obj
def show(session: Session, number: int, datastore: str) -> None:
    """Show one entry."""
    session.answer(session.node.worklist.get(session.subject, number, datastore=datastore))


@worklist.command("cancel")
@click.argument("number", type=int, metavar="ID")
@DATASTORE
@click.pass_obj
def cancel(session: Session, number: int, datastore: str) -> None:
    """Take an entry off the worklist."""
    session.answer(session.node.worklist.cancel(session.subject, number, datastore=datastore), f"entry {number} is cancelled")


@worklist.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE...")
@DATASTORE
@click.pass_obj
def import_(session: Session, files: tuple[Path, ...], datastore: str) -> int:
    """Enter worklist files: DICOM (as dcmtk's wlmscpfs reads them) or DICOM JSON, one data set or a list; folders: every .wl and .json.

    A file that was imported before changes the entry it made.
    """
    entered: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for path in _files(files):
        try:
            for dataset in _datasets(path):
                entered += session.node.worklist.add(session.subject, dataset, datastore=datastore, source=f"file {path.name}"[:64])
        except (InvalidRequest, StateConflict) as error:
            refused.append({"file": str(path), "why": error.message})
    lines = [f"{len(entered)} entries"] + [f"{one['file']}: {one['why']}" for one in refused]
    session.answer({"entered": len(entered), "ids": [one["id"] for one in entered], "refused": refused}, "\n".join(lines))
    return failures.FAILED if refused else failures.DONE


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.suffix.lower() in (".wl", ".json") and one.is_file())
        else:
            yield path


def _datasets(path: Path) -> list[DataSet]:
    """Read a file.

    Raises:
        InvalidRequest.
    """
    from archive.dicom import scheduled

    with path.open("rb") as file:
        data = file.read(scheduled.MAXIMUM_BYTES + 1)
    if data.lstrip()[:1] not in (b"{", b"["):
        return [scheduled.read(data)]
    if len(data) > scheduled.MAXIMUM_BYTES:
        message = "the file is larger than 1 MiB"
        raise InvalidRequest(message)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        message = "the file is no JSON"
        raise InvalidRequest(message, remedy="write a data set of the DICOM JSON Model") from error
    return [scheduled.checked(one) for one in (found if isinstance(found, list) else [found])]
