"""Checklist E04 and E08: fuzzy matching and keys inside sequences."""

from __future__ import annotations

import pytest

from archive.dicom.attributes import Level
from archive.errors import InvalidQuery
from archive.web.dicomweb import qido
from tests.services import archives
from tests.services.archives import opened
from tests.web import real
from tests.web.real import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:  # type: ignore[misc] # a generator
    from pydicom import Dataset, Sequence

    def sequence(**values: str) -> Sequence:
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        return Sequence([item])

    with opened(real.config(tmp_path_factory.mktemp("searches"))) as node:
        found = real.place(node)
        for number, (name, step) in enumerate((("Doe^John^Middle", "S1"), ("Doeman^Jones", "S2"), ("Müller^Jörg", "S1"))):
            archives.store(node, archives.instance(
                1, study=f"1.2.7.{number}", PatientID=f"F{number}", PatientName=name, SpecificCharacterSet="ISO_IR 192",
                RequestAttributesSequence=sequence(ScheduledProcedureStepID=step, RequestedProcedureID=f"R{number}"),
            ))
            node.accounts.add_grant(archives.the_console(node), to="mia", role="researcher",
                                    target=archives_target(f"1.2.7.{number}"))
        yield found


def archives_target(study: str) -> object:
    from archive.access.grants import Target

    return Target("study", study)


def found(place: Place, query: str, level: str = "studies") -> set[str]:
    answer = place.ask("GET", f"/dicomweb/{level}?{query}")
    assert answer.status_code == 200, answer.get_data()
    return {row["0020000D"]["Value"][0].removeprefix("1.2.7.") for row in answer.json}


@pytest.mark.parametrize(("text", "wanted"), [
    ("joh", {"0"}), ("do", {"0", "1"}), ("jo do", {"0", "1"}), ("John Doe", {"0"}), ("ohn", set()), ("MÜL", {"2"}), ("jorg", {"2"}),
    ("doe^jo", {"0", "1"}), ("middle", {"0"}), ("", {"0", "1", "2", "1.2.3"}),
])
def test_e04_fuzzy(place: Place, text: str, wanted: set[str]) -> None:
    assert found(place, f"PatientName={text}&fuzzymatching=true") == wanted


def test_e04_without_fuzzy_a_part_matches_nothing(place: Place) -> None:
    assert found(place, "PatientName=joh&fuzzymatching=false") == set()
    assert place.ask("GET", "/dicomweb/studies?fuzzymatching=yes").status_code == 400


@pytest.mark.parametrize(("query", "wanted"), [
    ("RequestAttributesSequence.ScheduledProcedureStepID=S1", {"0", "2"}),
    ("00400275.00400009=S1", {"0", "2"}),
    ("00400275.ScheduledProcedureStepID=S2", {"1"}),
    ("00400275.00400009=S?", {"0", "1", "2"}),
    ("00400275.00400009=S1&00400275.00401001=R2", {"2"}),
    ("00400275.00400009=S1&00400275.00401001=R1", set()),
    ("00400275.00400009=S1&PatientID=F2", {"2"}),
    ("00400275.00400009=*", {"0", "1", "2", "1.2.3"}),
    ("00400275.00400009=s1", set()),
])
def test_e08_keys_inside_sequences(place: Place, query: str, wanted: set[str]) -> None:
    assert found(place, query, "series") == wanted
    assert found(place, query, "instances") == wanted


def test_e08_the_sequence_is_answered_and_pages_are_of_what_matches(place: Place) -> None:
    answer = place.ask("GET", "/dicomweb/series?00400275.00400009=S1")
    assert answer.headers["X-Total-Count"] == "2"
    assert all(row["00400275"]["Value"][0]["00400009"]["Value"] == ["S1"] for row in answer.json)
    pages = [found(place, f"00400275.00400009=S1&limit=1&offset={n}", "series") for n in range(3)]
    assert [len(page) for page in pages] == [1, 1, 0]
    assert pages[0] | pages[1] == {"0", "2"}


@pytest.mark.parametrize("name", [
    "00400275.", ".00400009", "00400275..00400009", "PatientName.00400009", "Nope.00400009", "00400275.Nope", "00400275.00400275",
    "00081140.00081150", "00400275." + ".".join(["00400008"] * 9), "00400275.00400009.00400009", "é.ü",
])
def test_e08_what_is_no_path_is_an_error(place: Place, name: str) -> None:
    assert place.ask("GET", f"/dicomweb/series?{name}=x").status_code == 400


def test_e08_levels_and_doubles(place: Place) -> None:
    assert place.ask("GET", "/dicomweb/studies?00400275.00400009=S1").status_code == 400
    assert place.ask("GET", "/dicomweb/series?00400275.00400009=S1&00400275.ScheduledProcedureStepID=S2").status_code == 400
    assert place.ask("GET", "/dicomweb/series?includefield=00400275.00400009").status_code == 200
    with pytest.raises(InvalidQuery):
        qido.parse([("00400275.00400002", ["no date"])], Level.SERIES, "clinical")
