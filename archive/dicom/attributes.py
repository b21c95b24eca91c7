"""The one table of attributes: everything scanned at store, matched in a search, and answered.

A row says at which level of the information model an attribute lies, which column of that level's table holds it (the study table
carries the patient's too), and whether a search answers it unasked. InstanceAvailability and RetrieveURL stand once, at study level,
and are answered at every level.

Source: PS3.4 C.6, PS3.18 tables 10.6.3-3 to 10.6.3-5, PS3.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """A level of the query/retrieve information model, spelled as QueryRetrieveLevel spells it."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of the standard, as this archive treats it.

    `column` is None for what lies in the `attributes` JSON of its level only; `returned` means answered without being asked for;
    `computed` ones are never read from a data set; `folded` ones are matched without regard to case, accents and width, their
    folded text lies in `<column>_folded`.
    """

    keyword: str
    tag: int
    vr: str
    level: Level
    column: str | None
    returned: bool
    computed: bool = False
    folded: bool = False

    @property
    def tag_hex(self) -> str:
        """The tag as DICOM JSON spells it: eight upper-case hexadecimal digits."""
        return f"{self.tag:08X}"


_PATIENT = """
00100010 PN PatientName patient_name returned folded
00100020 LO PatientID patient_id returned
00100021 LO IssuerOfPatientID issuer_of_patient_id
00100030 DA PatientBirthDate patient_birth_date returned
00100032 TM PatientBirthTime -
00100040 CS PatientSex patient_sex returned
00101000 LO OtherPatientIDs -
00101001 PN OtherPatientNames - folded
00102160 SH EthnicGroup -
00104000 LT PatientComments -
00201200 IS NumberOfPatientRelatedStudies - computed
00201202 IS NumberOfPatientRelatedSeries - computed
00201204 IS NumberOfPatientRelatedInstances - computed
"""

_STUDY = """
0020000D UI StudyInstanceUID study_instance_uid returned
00080020 DA StudyDate study_date returned
00080030 TM StudyTime study_time returned
00080050 SH AccessionNumber accession_number returned
00080056 CS InstanceAvailability - returned computed
00080061 CS ModalitiesInStudy - returned computed
00080062 UI SOPClassesInStudy - computed
00080090 PN ReferringPhysicianName referring_physician_name returned folded
00080201 SH TimezoneOffsetFromUTC - returned
00081030 LO StudyDescription study_description returned folded
00081032 SQ ProcedureCodeSequence -
00081048 PN PhysiciansOfRecord - folded
00081060 PN NameOfPhysiciansReadingStudy - folded
00081080 LO AdmittingDiagnosesDescription -
00081190 UR RetrieveURL - returned computed
00101010 AS PatientAge -
00101020 DS PatientSize -
00101030 DS PatientWeight -
00200010 SH StudyID study_id returned
00201206 IS NumberOfStudyRelatedSeries - returned computed
00201208 IS NumberOfStudyRelatedInstances - returned computed
"""

_SERIES = """
0020000E UI SeriesInstanceUID series_instance_uid returned
00080021 DA SeriesDate - returned
00080031 TM SeriesTime - returned
00080060 CS Modality modality returned
00080070 LO Manufacturer -
00080080 LO InstitutionName -
00081010 SH StationName -
0008103E LO SeriesDescription series_description returned folded
00081040 LO InstitutionalDepartmentName -
00081050 PN PerformingPhysicianName - folded
00081070 PN OperatorsName - folded
00081090 LO ManufacturerModelName -
00180015 CS BodyPartExamined body_part_examined
00181030 LO ProtocolName -
00185100 CS PatientPosition -
00200011 IS SeriesNumber series_number returned
00200052 UI FrameOfReferenceUID -
00200060 CS Laterality -
00201209 IS NumberOfSeriesRelatedInstances - returned computed
00400244 DA PerformedProcedureStepStartDate performed_procedure_step_start_date returned
00400245 TM PerformedProcedureStepStartTime performed_procedure_step_start_time returned
00400253 SH PerformedProcedureStepID -
00400254 LO PerformedProcedureStepDescription -
00400275 SQ RequestAttributesSequence - returned
"""

_IMAGE = """
00080005 CS SpecificCharacterSet -
00080008 CS ImageType -
00080012 DA InstanceCreationDate -
00080013 TM InstanceCreationTime -
00080016 UI SOPClassUID sop_class_uid returned
00080018 UI SOPInstanceUID sop_instance_uid returned
00080022 DA AcquisitionDate -
00080023 DA ContentDate -
0008002A DT AcquisitionDateTime -
00080032 TM AcquisitionTime -
00080033 TM ContentTime -
00083002 UI AvailableTransferSyntaxUID - computed
00180050 DS SliceThickness -
00200012 IS AcquisitionNumber -
00200013 IS InstanceNumber instance_number returned
00200032 DS ImagePositionPatient -
00200037 DS ImageOrientationPatient -
00201041 DS SliceLocation -
00204000 LT ImageComments -
00280002 US SamplesPerPixel -
00280004 CS PhotometricInterpretation -
00280006 US PlanarConfiguration -
00280008 IS NumberOfFrames number_of_frames returned
00280010 US Rows rows returned
00280011 US Columns columns returned
00280030 DS PixelSpacing -
00280100 US BitsAllocated bits_allocated returned
00280101 US BitsStored -
00280102 US HighBit -
00280103 US PixelRepresentation -
00281050 DS WindowCenter -
00281051 DS WindowWidth -
00281052 DS RescaleIntercept -
00281053 DS RescaleSlope -
00282110 CS LossyImageCompression -
0040A043 SQ ConceptNameCodeSequence -
0040A491 CS CompletionFlag -
0040A493 CS VerificationFlag -
00420010 ST DocumentTitle -
00700080 CS ContentLabel -
00700081 LO ContentDescription -
00700082 DA PresentationCreationDate -
00700083 TM PresentationCreationTime -
00700084 PN ContentCreatorName - folded
"""


def _rows(level: Level, table: str) -> list[Attribute]:
    rows = []
    for line in table.strip().splitlines():
        tag, vr, keyword, column, *flags = line.split()
        rows.append(
            Attribute(
                keyword=keyword,
                tag=int(tag, 16),
                vr=vr,
                level=level,
                column=None if column == "-" else column,
                returned="returned" in flags,
                computed="computed" in flags,
                folded="folded" in flags,
            )
        )
    return rows


ATTRIBUTES: tuple[Attribute, ...] = (
    *_rows(Level.PATIENT, _PATIENT),
    *_rows(Level.STUDY, _STUDY),
    *_rows(Level.SERIES, _SERIES),
    *_rows(Level.IMAGE, _IMAGE),
)
"""Every attribute known to searches, by level."""

BY_TAG: dict[int, Attribute] = {attribute.tag: attribute for attribute in ATTRIBUTES}
BY_KEYWORD: dict[str, Attribute] = {attribute.keyword: attribute for attribute in ATTRIBUTES}
SCANNED: dict[int, Attribute] = {attribute.tag: attribute for attribute in ATTRIBUTES if not attribute.computed}
"""What the scanner reads from a data set."""

_HEX = frozenset("0123456789abcdefABCDEF")


def lookup(text: str) -> Attribute | None:
    """Return the attribute named by its keyword or by eight hexadecimal digits of any case, None when there is none."""
    found = BY_KEYWORD.get(text)
    if found is None and len(text) == 8 and _HEX.issuperset(text):
        found = BY_TAG.get(int(text, 16))
    return found
