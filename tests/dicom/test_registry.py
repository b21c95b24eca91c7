"""The registries say what pydicom says of them, and do not import it."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import datadict
from pydicom._dicom_dict import DicomDictionary, RepeatersDictionary
from pydicom._uid_dict import UID_dictionary

from archive.dicom import registry

REPEATING = [int(mask.replace("x", digit), 16) for mask in RepeatersDictionary for digit in "02F"]


def said(tag: int) -> tuple[str, str, str]:
    """The oracle's answer."""
    try:
        return datadict.dictionary_VR(tag), datadict.dictionary_VM(tag), datadict.keyword_for_tag(tag)
    except KeyError:
        return "", "", ""


@given(st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from(sorted(DicomDictionary)), st.sampled_from(REPEATING)))
@example(0x60000010)
@example(0x60010010)
@example(0x00020000)
def test_every_tag_is_what_pydicom_says(tag: int) -> None:
    assert (registry.vr_of(tag), registry.vm_of(tag), registry.keyword_of(tag)) == said(tag)


def test_every_keyword_leads_to_its_tag() -> None:
    assert all(registry.tag_of(entry[4]) == datadict.tag_for_keyword(entry[4]) for entry in DicomDictionary.values())
    assert all(registry.tag_of(entry[4]) == datadict.tag_for_keyword(entry[4]) for entry in RepeatersDictionary.values())
    assert registry.tag_of("Nonsense") is None


def test_without_pydicom() -> None:
    code = (
        "import sys; from archive.dicom import registry\n"
        "assert registry.keyword_of(0x00100010) == 'PatientName' and registry.tag_of('PatientID') == 0x00100020\n"
        "assert not {'pydicom', 'numpy'} & sys.modules.keys()\n"
        "from pydicom._uid_dict import UID_dictionary; assert registry.UIDS.items() >= UID_dictionary.items()\n"
        "import pynetdicom; assert registry.UIDS == UID_dictionary, 'the library that came later knows more'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert UID_dictionary.items() <= registry.UIDS.items()
