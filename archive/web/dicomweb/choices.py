"""Where DICOMweb servers differ: what is answered here, for the conformance statement; each line is held by tests."""

from __future__ import annotations

CHOICES: tuple[tuple[str, str], ...] = (
    ("the same bytes stored again", "200, listed as stored"),
    ("other bytes under a known SOP Instance UID", "409 with FailureReason 45070; what was stored first stays"),
    ("an instance of another study than the address names", "409 with FailureReason 43265"),
    ("nothing matches a search", "200 with an empty array"),
    ("a search key that is not known, twice given, or of a lower level", "400, which names the key; a search is never wider than asked"),
    ("an empty search value", 'matches everything; "" matches what is absent or empty'),
    ("an includefield that is not known", "passed over"),
    ("keys inside sequences", "tags or keywords with dots between; those under one sequence are met by one item of it"),
    ("a limit beyond 10000, or none", "10000 rows, and Warning 299 when there are more"),
    ("fuzzymatching", "every word of the value begins a word of the name, whatever case and accents; 32 different words at most"),
    ("a study or series without transfer-syntax", "uncompressed little endian as stored, all else decoded to Explicit VR Little Endian"),
    ("one instance cannot be had in what is accepted", "406 for all of them; transfer-syntax=* gives all as stored"),
    ("frames in a media type they are not stored in", "encoded without loss; in JPEG Baseline where its UID is named"),
    ("media types of equal quality", "what is stored or decoded goes before what is encoded, and that before what loses something"),
    ("an instance in a lossy transfer syntax it is not stored in", "406: it would be another instance under the same UID"),
    ("application/dicom as a single part", "for one instance; 406 for a study or series"),
    ("application/dicom+xml", "metadata and searches, in multipart/related alone"),
    ("binary values in metadata", "up to 4096 bytes InlineBinary, above it and pixel data always BulkDataURI"),
    ("metadata of what stands behind the pixel data", "as of what stands before, but for binary values above 4096 bytes"),
    ("zeros between elements, elements 0000,0000 without a value", "passed over; zeros behind the pixel data end the data set"),
    ("bulk data of one compressed frame", "in the forms of a frame, decoded where octets are asked for; of several frames 404"),
    ("character set of JSON and XML", "UTF-8, and SpecificCharacterSet says ISO_IR 192"),
    ("addresses in answers", "begin with [archive] public_url, never with Host or Forwarded"),
    ("Range", "one range of a single part as stored, a frame or a value; several ranges give the whole; outside 416"),
    ("rendered study or series", "the picture of the instance in its middle; in multipart one of each image"),
    ("rendered instance of several frames", "its first frame"),
    ("rendered instance without pixels", "404"),
    ("rendered pixels that are not square",
     ("in the shape that Pixel Spacing, Imager or Nominal Scanned Pixel Spacing, or Pixel Aspect Ratio says, up to 16:1, by more columns "
      "or rows where no viewport bounds them; a viewport's region counts them as stored")),
    ("overlays (60xx,3000), display shutters and presentation states", "not drawn; they are in the instance and its metadata"),
    ("WADO-URI", "studyUID, seriesUID and objectUID are all required; anonymize, region and presentation states are refused"),
    ("offset tables, NumberOfFrames and fragments that contradict each other",
     "frames as two of them say where no other two say otherwise, else none; the whole instance as stored"),
    ("zip of a study or series", "Part 10 as stored and DICOMDIR, at /zip or by application/zip; needs original, and send or share"),
    ("DELETE", "204; what is deleted is out of sight and can be restored until it is purged; 409 while held"),
    ("what the caller may not see", "answers as what is not there, 404, and counts nowhere"),
)
"""Question and answer."""
