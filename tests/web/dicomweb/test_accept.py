"""The Accept grammar: what real clients send, and anything else without a crash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.web.dicomweb import accept, media, parameters
from archive.web.dicomweb.accept import ANYTHING, MediaRange
from archive.web.dicomweb.media import EXPLICIT_LE, OCTETS

JPEG = "1.2.840.10008.1.2.4.50"


def frames(header: str | None, stored: str = JPEG, query: str | None = None, *, single: bool = True) -> list[tuple[str, str, str]]:
    """Return (container, media type, transfer syntax) of every way, best first."""
    ways = media.frame_choices(accept.parse(header, query), stored, single_allowed=single)
    return [("multipart" if way.multipart else "single", way.media_type, way.transfer_syntax_uid) for way in ways]


def instances(header: str | None, *, single: bool = True) -> list[tuple[str, tuple[str | None, ...]]]:
    ways = media.containers(accept.parse(header), single_allowed=single)
    return [("multipart" if way.multipart else "single", way.syntaxes) for way in ways]


LOSSLESS = "1.2.840.10008.1.2.4.70"
STORED = ("multipart", "image/jpeg", JPEG)
DECODED = ("multipart", OCTETS, EXPLICIT_LE)


@pytest.mark.parametrize(
    "header",
    [
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        'multipart/related; type="application/octet-stream"; transfer-syntax="*"',
        'multipart/related;type="application/octet-stream";transfer-syntax="*"',
        "multipart/related; type = application/octet-stream; transfer-syntax = *",
        'Multipart/Related; Type="Application/Octet-Stream"; Transfer-Syntax=*',
        "multipart/related; transfer-syntax=*",
        "*/*; transfer-syntax=*",
        f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}",
        f'multipart/related; type="image/jpeg"; transfer-syntax="{JPEG}"',
        "multipart/related; type=image/jpeg",
        "multipart/related; type=image/*; transfer-syntax=*",
        f"multipart/related; type=application/octet-stream; transfer-syntax={JPEG}",
    ],
)
def test_2a1_stored_frames_are_asked_for_in_every_spelling(header: str) -> None:
    assert frames(header)[0] == STORED


@pytest.mark.parametrize(
    "header",
    [
        None, "", "  ", "*/*", "*", "multipart/related", "multipart/*", 'multipart/related; type="*/*"', "multipart/related; type=*/*",
        "multipart/related; type=application/octet-stream", 'multipart/related; type = "application/octet-stream"',
        f"multipart/related; type=application/octet-stream; transfer-syntax={EXPLICIT_LE}",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "text/html, image/gif, *; q=.2, */*; q=.2",
        "application/dicom+json, multipart/related; type=application/octet-stream",
        "multipart/related; type=application/octet-stream;;",
    ],
)
def test_2a1_frames_are_decoded_unless_asked_otherwise(header: str | None) -> None:
    assert frames(header)[0] == DECODED


def test_2a1_what_cannot_be_decoded_may_go_out_as_stored_when_anything_is_taken() -> None:
    assert frames("*/*") == [DECODED, STORED]
    assert frames("multipart/related; type=application/octet-stream") == [DECODED]


def test_d15_a_type_that_is_not_there_is_not_answered() -> None:
    assert frames("multipart/related; type=nope/nope") == []
    assert frames("multipart/related; type=nope") == []
    assert frames("multipart/related; type=image/jp2; transfer-syntax=1.2.840.10008.1.2.4.91") == []
    assert frames("multipart/related; type=image/jp2; transfer-syntax=1.2.840.10008.1.2.4.80") == []
    assert frames("multipart/related; type=image/jpx") == []
    assert frames("multipart/related; type=video/mp4; transfer-syntax=*") == []
    assert frames("multipart/related; type=application/octet-stream; transfer-syntax=nope") == []
    assert frames("text/plain") == []
    assert frames(f"multipart/related; type=image/jpeg; transfer-syntax={EXPLICIT_LE}") == []


def test_d08_a_single_part_is_given_to_who_asks_for_one_by_name() -> None:
    assert frames("application/octet-stream; transfer-syntax=*") == [("single", "image/jpeg", JPEG)]
    assert frames("application/octet-stream") == [("single", OCTETS, EXPLICIT_LE)]
    assert frames("image/jpeg")[0] == ("single", "image/jpeg", JPEG)
    assert frames("image/jpeg", single=False) == []


@pytest.mark.parametrize("stored", sorted(media.NORMALISED))
def test_2a14_big_endian_and_deflated_frames_come_little_endian_under_star(stored: str) -> None:
    assert frames("multipart/related; type=application/octet-stream; transfer-syntax=*", stored)[0] == DECODED
    assert frames(f"multipart/related; transfer-syntax={stored}", stored) == [("multipart", OCTETS, stored)]


@pytest.mark.parametrize(
    "header",
    [
        'multipart/related; type="image/jpeg, multipart/related; type=application/octet-stream; transfer-syntax=*',
        "nonsense, multipart/related; transfer-syntax=*",
        "a/b/c, ;;;, =, multipart/related; type, multipart/related; type=application/octet-stream; transfer-syntax=*",
        "multipart/related; type=image/jpeg; q=x, multipart/related; transfer-syntax=*",
        "multipart/related; \u00e9=1, multipart/related; transfer-syntax=*",
    ],
)
def test_2a1_a_malformed_member_is_skipped(header: str) -> None:
    assert frames(header)[0] == STORED


def test_b18_the_best_supported_member_is_taken() -> None:
    ways = frames("image/jpx, multipart/related; type=application/octet-stream; q=0.2, multipart/related; type=image/jpeg; q=0.9")
    assert ways == [STORED, ("multipart", "image/jpeg", LOSSLESS), DECODED]


@pytest.mark.parametrize(("media_type", "syntax"), [
    ("image/jpeg", LOSSLESS), ("image/jls", "1.2.840.10008.1.2.4.80"), ("image/x-jls", "1.2.840.10008.1.2.4.80"),
    ("image/jp2", "1.2.840.10008.1.2.4.90"), ("image/dicom-rle", "1.2.840.10008.1.2.5"), ("image/x-dicom-rle", "1.2.840.10008.1.2.5"),
])
def test_d05_frames_are_encoded_in_the_media_types_own_transfer_syntax(media_type: str, syntax: str) -> None:
    """PS3.18 table 8.7.3-4: the default of a media type where no transfer syntax is named."""
    given = ("multipart", media.FRAME_TYPES[syntax], syntax)
    for more in ("", "; transfer-syntax=*", f"; transfer-syntax={syntax}"):
        assert frames(f'multipart/related; type="{media_type}"{more}', stored=EXPLICIT_LE) == [given]
    assert frames(f"multipart/related; transfer-syntax={syntax}", stored=EXPLICIT_LE) == [given]
    assert frames(f"{media_type}", stored=EXPLICIT_LE) == [("single", *given[1:])]
    assert frames(f"{media_type}", stored=syntax) == [("single", *given[1:])]


def test_d05_loss_is_only_ever_by_name() -> None:
    lossy = ("multipart", "image/jpeg", JPEG)
    assert frames(f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}", stored=EXPLICIT_LE) == [lossy]
    for header in ("image/*", "multipart/related; type=image/*", "multipart/related; type=image/jpeg; transfer-syntax=*", "*/*"):
        assert lossy[1:] not in [way[1:] for way in frames(header, stored=EXPLICIT_LE)]
    both = f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}, multipart/related; type=image/jls"
    assert frames(both, stored=EXPLICIT_LE) == [("multipart", "image/jls", "1.2.840.10008.1.2.4.80"), lossy]


def test_b18_quality_goes_first_and_among_equals_what_costs_nothing() -> None:
    jls, jp2 = (("multipart", f"image/{name}", f"1.2.840.10008.1.2.4.{n}") for name, n in (("jls", 80), ("jp2", 90)))
    header = "multipart/related; type=image/jls{}, multipart/related; type=image/jp2{}, multipart/related; type=application/octet-stream{}"
    assert frames(header.format("", "", ""), stored=EXPLICIT_LE) == [DECODED, jls, jp2]
    assert frames(header.format("", "", ""), stored=jp2[2]) == [jp2, DECODED, jls]
    assert frames(header.format("; q=.5", "", "; q=.1"), stored=EXPLICIT_LE) == [jp2, jls, DECODED]
    assert frames(header.format("", "; q=0", "; q=0.001"), stored=EXPLICIT_LE) == [jls, DECODED]
    assert frames(header.format("; q=2", "; q=x", "; q=1.0"), stored=EXPLICIT_LE) == [DECODED, jls]


def test_zero_quality_excludes() -> None:
    assert frames("*/*, multipart/related; type=application/octet-stream; q=0") == [STORED]
    assert frames("multipart/related; q=0, application/octet-stream") == [("single", OCTETS, EXPLICIT_LE)]
    assert frames("*/*; q=0") == []
    assert frames(f"multipart/related; type=image/jpeg; transfer-syntax={LOSSLESS}; q=0, multipart/related; type=image/jpeg") == [STORED]
    assert frames(f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}; q=0, multipart/related; type=image/jpeg") == [
        ("multipart", "image/jpeg", LOSSLESS)]


def test_the_accept_parameter_goes_before_the_header() -> None:
    assert frames("multipart/related", query="image/jpeg")[0] == ("single", "image/jpeg", JPEG)
    assert frames("multipart/related", query="") == [DECODED, STORED]
    assert frames("multipart/related; transfer-syntax=*", query="rubbish")[0] == STORED


def test_a_plus_lost_in_the_query_string_is_found_again() -> None:
    assert [one.name for one in accept.parse(None, "application/dicom json").ranges] == ["application/dicom+json"]


def test_b01_to_b12_instances() -> None:
    assert instances(None) == [("multipart", (None,))]
    assert instances("multipart/related; type=application/dicom") == [("multipart", (None,))]
    assert instances('multipart/related; type="application/dicom"; transfer-syntax=*') == [("multipart", ("*",))]
    assert instances("application/dicom; transfer-syntax=*") == [("single", ("*",))]
    assert instances("application/dicom", single=False) == []
    assert instances("multipart/related; type=application/octet-stream") == []
    for header in ("nope", "multipart/nope", "multipart/related; type=application/nope", "toto, tata", "text/plain"):
        assert instances(header) == []
    assert instances("application/dicom;q=0.1, multipart/related; type=application/dicom; transfer-syntax=1.2, */*;q=.5") == [
        ("multipart", ("1.2", None)), ("single", (None,)),
    ]


def test_nothing_sent_is_anything() -> None:
    assert accept.parse(None) == accept.parse("", "") == ANYTHING


def test_the_number_of_members_is_bounded() -> None:
    assert len(accept.parse(",".join(["a/b"] * 5000)).ranges) == accept.MEMBERS


@given(st.text(max_size=300), st.none() | st.text(max_size=50))
def test_any_text_is_read_without_an_error(header: str, query: str | None) -> None:
    taken = accept.parse(header, query)
    list(media.frame_choices(taken, JPEG, single_allowed=True))
    list(media.containers(taken, single_allowed=True))


_PIECES = st.sampled_from(
    [
        "multipart/related",
        "application/dicom",
        "*/*",
        "image/*",
        "type",
        "transfer-syntax",
        "q",
        "=",
        ";",
        ",",
        '"',
        " ",
        "*",
        "0",
        ".5",
        "\\",
        "/",
    ]
)


@given(st.lists(_PIECES, max_size=40).map("".join))
def test_any_arrangement_of_its_pieces_is_read_without_an_error(header: str) -> None:
    for one in accept.parse(header).ranges:
        assert 0 < one.quality <= 1
        assert parameters.is_type(one.name)
        assert one.specificity in {0, 1, 2}


_TOKENS = st.sampled_from(["image/jpeg", "application/octet-stream", "*/*", "application/dicom", "image/*"])


@given(
    st.sampled_from(["multipart/related", "*/*", "application/dicom"]), _TOKENS, st.sampled_from(["*", JPEG, EXPLICIT_LE]),
    st.integers(1, 1000), st.booleans(), st.text(" ", max_size=3), st.text('abc/;="é', max_size=8),
)
def test_a_well_formed_member_survives_any_spacing_quoting_and_bad_neighbour(
    name: str, part: str, syntax: str, thousandths: int, quoted: bool, space: str, neighbour: str
) -> None:
    mark = '"' if quoted else ""
    member = (
        f"{name}{space};{space}type{space}={space}{mark}{part}{mark}{space};transfer-syntax={mark}{syntax}{mark};q={thousandths / 1000}"
    )
    assert MediaRange(name, part, syntax, thousandths / 1000) in accept.parse(f"{neighbour},{member}, {neighbour}").ranges


@given(st.text(max_size=100))
def test_content_types_are_read_without_an_error(text: str) -> None:
    parameters.parse(text)


def test_an_odd_boundary_is_read() -> None:
    told = parameters.parse("multipart/related; type=application/dicom; boundary==_?:(a/b)'+.x=")
    assert told is not None
    assert told.parameters["boundary"] == "=_?:(a/b)'+.x="
    told = parameters.parse('multipart/related; boundary="a \\"b"')
    assert told is not None
    assert told.parameters["boundary"] == 'a "b'
