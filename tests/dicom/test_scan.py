"""scan over the whole corpus: what is refused and why, what is kept and found, and that it says what pydicom says."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from archive.dicom.part10 import Limits, scan
from archive.dicom.values import plain
from archive.errors import InvalidInstance

UID_FILES = {
    "traversal": "bad-uid",
    "abs": "bad-uid",
    "nul": "bad-uid",
    "long": "bad-uid",
    "empty": "missing-uid",
    "alpha": "bad-uid",
    "quote": "bad-uid",
    "pct": "bad-uid",
    "trail": "bad-uid",
}
REFUSED = {
    "deflate-corrupt.dcm": "cannot-understand",
    "elem-length-over.dcm": "cannot-understand",
    "empty.dcm": "cannot-understand",
    # Its name says 12 bytes and is 13 long: everything after it is out of step. A well-formed one is tested below.
    "invalid-utf8.dcm": "cannot-understand",
    "missing-SOPClassUID.dcm": "missing-uid",
    "missing-SOPInstanceUID.dcm": "missing-uid",
    "missing-SeriesInstanceUID.dcm": "missing-uid",
    "missing-StudyInstanceUID.dcm": "missing-uid",
    "nested-3000.dcm": "too-deep",
    "nested-undef-unclosed.dcm": "too-deep",
    "px-length-4G.dcm": "cannot-understand",
    "text.dcm": "no-meta",
    "truncated-10.dcm": "cannot-understand",
    "truncated-131.dcm": "cannot-understand",
    "truncated-140.dcm": "cannot-understand",
    "truncated-338.dcm": "cannot-understand",
    "truncated-1150.dcm": "cannot-understand",
    "truncated-1249.dcm": "cannot-understand",
    "wrong-ts-in-meta.dcm": "cannot-understand",
    **{f"uid-{kind}.dcm": reason for kind, reason in UID_FILES.items()},
    **{f"studyuid-{kind}.dcm": reason for kind, reason in UID_FILES.items()},
}
KEPT = {
    "00-good.dcm": set(),
    "bad-DS.dcm": {"00101030"},
    "bad-IS.dcm": {"00200013"},
    "bad-date.dcm": {"00080020", "00100030"},
    "bad-group-length.dcm": set(),
    "bidi-name.dcm": {"00100010"},
    "binary-in-url.dcm": {"00080050"},
    "crlf-desc.dcm": {"00081030"},
    "csv-formula.dcm": set(),
    "deflate-bomb-128M.dcm": {"00000000"},
    "dims-lie.dcm": {"7FE00010"},
    "dup-1.dcm": set(),
    "dup-2-other-patient.dcm": set(),
    "dup-tag.dcm": {"00100020"},
    "empty-PatientID.dcm": set(),
    "frames-lie.dcm": {"7FE00010"},
    "group0-in-dataset.dcm": {"00000002"},
    "html-preamble.dcm": set(),
    "huge-PN.dcm": {"00100010"},
    "long-LO.dcm": {"00081030"},
    "meta-mismatch.dcm": set(),  # written with equal UIDs; a real mismatch is tested below
    "missing-PatientID.dcm": set(),
    "nan-FD.dcm": set(),
    "odd-length.dcm": set(),
    "pe-preamble.dcm": set(),
    "private-sop.dcm": set(),
    "range-date.dcm": {"00080020"},
    "series-two-studies.dcm": set(),
    "sql-name.dcm": set(),
    "study-two-patients.dcm": set(),
    "studyuid-lead0.dcm": {"0020000D"},
    "studyuid-space.dcm": set(),
    "trailing-garbage.dcm": {"00000000"},
    "uid-lead0.dcm": {"00080018"},
    "uid-space.dcm": set(),
    "unknown-charset.dcm": {"00080005"},
    "unknown-ts.dcm": {"00020010", "7FE00010"},
    "wrong-charset.dcm": set(),
    "xss-name.dcm": set(),
}
# Good files of other projects that name no study, have no preamble, or end early.
NOT_INSTANCES = {
    "GH179B.dcm": "cannot-understand",
    "GH220.dcm": "missing-uid",
    "GH340.dcm": "no-meta",
    "GH487.dcm": "missing-uid",
    "chrSQEncoding.dcm": "missing-uid",
    "chrSQEncoding1.dcm": "missing-uid",
    "DICOMDIR": "missing-uid",
    "HTJ2KLossless_08_RGB.dcm": "missing-uid",
    "HTJ2K_08_RGB.dcm": "missing-uid",
    "JLSL_08_07_0_1F.dcm": "missing-uid",
    "JLSL_16_15_1_1F.dcm": "missing-uid",
    "JLSL_RGB_ILV0.dcm": "no-meta",
    "JLSL_RGB_ILV1.dcm": "no-meta",
    "JLSL_RGB_ILV2.dcm": "no-meta",
    "JLSN_RGB_ILV0.dcm": "no-meta",
    "OT-PAL-8-face.dcm": "no-meta",
    "bad_sequence.dcm": "bad-uid",
}

# The last fragment's delimiter is missing; pydicom reads nothing of them.
CUT_SHORT = {"GH1339.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}
CUT_SHORT |= {"GH179A.dcm"}  # an element without VR: pydicom reads the rest of the data set as its value


def refusal(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(InvalidInstance) as caught:
        scan(data, limits or Limits())
    return caught.value.reason


def test_every_hostile_file_is_in_the_table(hostile: Path) -> None:
    names = {path.name for path in hostile.glob("*.dcm")}
    assert names == REFUSED.keys() | KEPT.keys()
    assert not REFUSED.keys() & KEPT.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_that_are_refused(hostile: Path, name: str) -> None:
    assert refusal((hostile / name).read_bytes()) == REFUSED[name]


@pytest.mark.parametrize("name", KEPT)
def test_hostile_files_that_are_kept_and_what_is_found(hostile: Path, name: str) -> None:
    scanned = scan((hostile / name).read_bytes())
    assert {finding.tag for finding in scanned.findings} == KEPT[name]
    expected = "other" if name in {"html-preamble.dcm", "pe-preamble.dcm"} else "zero"
    assert scanned.preamble == expected


def test_findings_hold_no_value_of_the_data_set(hostile: Path) -> None:
    for name in KEPT:
        scanned = scan((hostile / name).read_bytes())
        texts = [value for element in scanned.attributes.values() for value in map(plain, element.get("Value", [])) if len(value) > 3]
        assert not [text for text in texts for finding in scanned.findings if text in finding.text], name


def test_every_other_file_of_the_corpus_says_what_pydicom_says(corpus_files: list[Path]) -> None:
    compared = 0
    for path in corpus_files:
        data = path.read_bytes()
        if path.name in NOT_INSTANCES:
            assert refusal(data) == NOT_INSTANCES[path.name], path.name
            continue
        scanned = scan(data)
        if path.name in CUT_SHORT:
            continue
        theirs = read(data)
        assert scanned.sop_class_uid == theirs.SOPClassUID, path.name
        assert scanned.sop_instance_uid == theirs.SOPInstanceUID, path.name
        assert scanned.study_instance_uid == theirs.StudyInstanceUID, path.name
        assert scanned.series_instance_uid == theirs.SeriesInstanceUID, path.name
        assert scanned.transfer_syntax_uid == theirs.file_meta.TransferSyntaxUID, path.name
        assert scanned.attributes.keys() == {
            f"{tag:08X}" for tag in set(theirs.keys()) if f"{tag:08X}" in scanned.attributes or wanted(tag)
        }, path.name
        for keyword in ("PatientID", "StudyDescription", "SeriesDescription", "Manufacturer", "StudyDate", "AccessionNumber", "Modality"):
            value = theirs.get(keyword)
            first = value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value
            assert scanned.text(keyword) == str(first or "").strip(), (path.name, keyword)
        if path.name != "chrGB2312.dcm":  # pydicom leaves escape sequences in it
            assert scanned.text("PatientName") == str(theirs.get("PatientName", "")).rstrip("= "), path.name
        assert scanned.number("Rows") == theirs.get("Rows"), path.name
        compared += 1
    assert compared > 150


def wanted(tag: int) -> bool:
    from archive.dicom.attributes import SCANNED

    return tag in SCANNED


def read(data: bytes) -> pydicom.Dataset:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(BytesIO(data))
        for element in dataset:  # decode now, while warnings are off
            _ = element.value
    return dataset


def test_names_come_back_by_component_group(corpus: Path) -> None:
    """E20: exact Unicode per component group, no escape sequence left."""
    folder = corpus / "fo-dicom__fo-dicom" / "Test Data" / "charset"
    expected = {
        "chrArab.dcm": "قباني^لنزار",
        "chrFren.dcm": "Buc^Jérôme",
        "chrGerm.dcm": "Äneas^Rüdiger",
        "chrGreek.dcm": "Διονυσιος",
        "chrH31.dcm": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "chrH32.dcm": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        "chrHbrw.dcm": "שרון^דבורה",
        "chrI2.dcm": "Hong^Gildong=洪^吉洞=홍^길동",
        "chrRuss.dcm": "Люкceмбypг",
        "chrX1.dcm": "Wang^XiaoDong=王^小東",
        "chrX2.dcm": "Wang^XiaoDong=王^小东",
        "chrGB2312.dcm": "Zhang^XiaoDong=张^小东",
    }
    for name, text in expected.items():
        assert scan((folder / name).read_bytes()).text("PatientName") == text, name
