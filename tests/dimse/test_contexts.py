"""The classes and transfer syntaxes taken: the corpus', the library's, the standard's, and no others."""

from __future__ import annotations

from pathlib import Path

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AllStoragePresentationContexts, sop_class

from archive.dimse import contexts
from archive.dimse.contexts import STORAGE_CLASSES, TRANSFER_SYNTAXES, Proposed, Role, answer, is_storage
from tests.dimse.part10 import sendable

CT = "1.2.840.10008.5.1.4.1.1.2"


def test_every_class_of_the_library() -> None:
    assert {str(context.abstract_syntax) for context in AllStoragePresentationContexts} <= STORAGE_CLASSES


def test_nothing_that_is_not_storage() -> None:
    for group in (sop_class._QR_CLASSES, sop_class._BASIC_WORKLIST_CLASSES, sop_class._STORAGE_COMMITMENT_CLASSES,
                  sop_class._INVENTORY_CLASSES, sop_class._PROTOCOL_APPROVAL_CLASSES, sop_class._VERIFICATION_CLASSES):
        assert not STORAGE_CLASSES & set(group.values())
    assert "1.2.840.10008.1.3.10" not in STORAGE_CLASSES  # DICOMDIR


def test_every_transfer_syntax_of_the_library_that_encodes_a_data_set() -> None:
    real_time = {uid for uid in AllTransferSyntaxes if uid.startswith("1.2.840.10008.1.2.7.")}
    assert set(AllTransferSyntaxes) - real_time <= TRANSFER_SYNTAXES
    named = {
        "HTJ2K": "1.2.840.10008.1.2.4.201", "JPEG XL": "1.2.840.10008.1.2.4.110", "deflated frames": "1.2.840.10008.1.2.8.1",
        "HEVC": "1.2.840.10008.1.2.4.107", "MPEG2": "1.2.840.10008.1.2.4.100", "big endian": "1.2.840.10008.1.2.2",
        "deflated": "1.2.840.10008.1.2.1.99", "RLE": "1.2.840.10008.1.2.5", "JPEG-LS": "1.2.840.10008.1.2.4.80",
    }
    assert set(named.values()) <= TRANSFER_SYNTAXES
    assert "1.2.840.10008.1.2.6.1" not in TRANSFER_SYNTAXES


def test_the_corpus(corpus: Path) -> None:
    """Every class and transfer syntax of real files, private classes by opt-in; a hostile file names a syntax that is none."""
    images = [image for path in corpus.rglob("*") if path.is_file() and (image := sendable(path))]
    refused = {image.sop_class_uid for image in images if not is_storage(image.sop_class_uid, private=False)}
    assert {uid for uid in refused if uid.startswith("1.2.840.10008.")} <= {"1.2.840.10008.1.3.10"}
    assert all(is_storage(uid, private=True) for uid in refused if not uid.startswith("1.2.840.10008."))
    assert len(refused) > 2
    strange = {image.path.name for image in images if image.transfer_syntax_uid not in TRANSFER_SYNTAXES}
    assert strange == {"unknown-ts.dcm"}


def test_private_classes_by_opt_in_only() -> None:
    proposed = [Proposed(1, "1.3.46.670589.5.0.1.1", ("1.2.840.10008.1.2",)), Proposed(3, "", ("1.2.840.10008.1.2",))]
    assert [c.result for c in answer(proposed, {}, may_store=True, private=False)[0]] == [3, 3]
    assert [c.result for c in answer(proposed, {}, may_store=True, private=True)[0]] == [0, 3]
    assert [c.result for c in answer(proposed, {}, may_store=False, private=True)[0]] == [1, 3]


def test_private_does_not_open_other_standard_services() -> None:
    assert not is_storage("1.2.840.10008.5.1.4.1.2.2.1", private=True)
    assert not is_storage(contexts.VERIFICATION, private=True)


def test_the_proposers_order_decides() -> None:
    jpeg, explicit = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1"
    for order in ((jpeg, explicit), (explicit, jpeg), ("1.2.3", jpeg)):
        answered, _ = answer([Proposed(1, CT, order)], {}, may_store=True, private=False)
        assert answered[0].transfer_syntax == next(uid for uid in order if uid != "1.2.3")


def test_roles() -> None:
    proposed = [Proposed(1, CT, ("1.2.840.10008.1.2",))]
    assert answer(proposed, {CT: Role(CT, scu=True, scp=True)}, may_store=True, private=False) == (
        answer(proposed, {}, may_store=True, private=False)[0], (Role(CT, scu=True, scp=False),),
    )
    answered, roles = answer(proposed, {CT: Role(CT, scu=False, scp=True)}, may_store=True, private=False)
    assert (answered[0].result, roles) == (1, ())
