"""Every error and every outcome has a status, and no comment says anything about a data set."""

from __future__ import annotations

import inspect
from typing import get_args, get_type_hints

import pytest

from archive import errors
from archive.dimse import status
from archive.errors import ArchiveError, InvalidInstance, UnsupportedClass

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ArchiveError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_of_errors_has_a_line(kind: type[ArchiveError]) -> None:
    assert kind in status.ERRORS


def test_no_line_without_a_class() -> None:
    assert set(status.ERRORS) == set(CLASSES)


@pytest.mark.parametrize("answer", [*status.ERRORS.values(), *status.REASONS.values(), *status.OUTCOMES.values()])
def test_comments_fit_their_value_representation(answer: status.Answer) -> None:
    assert len(answer.comment) <= status.COMMENT_CHARACTERS
    assert answer.comment.isascii()
    assert "\\" not in answer.comment
    assert bool(answer.comment) == (answer.status != status.SUCCESS)


def test_failures_are_failures() -> None:
    """PS3.7 Annex C: only 0000 and the warnings Bxxx, 0001, 0107, 0116 tell a sender that its instance is safe."""
    for answer in [*status.ERRORS.values(), *status.REASONS.values()]:
        assert answer.status not in (0, 1, 0x0107, 0x0116)
        assert answer.status >> 12 != 0xB


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Forbidden("x"), 0x0124), (errors.OutOfSpace("x"), 0xA700), (errors.ReadOnly("x"), 0xA700),
        (errors.InstanceConflict("x"), 0x0111), (InvalidInstance("x"), 0xC000), (InvalidInstance("x", reason="uid-mismatch"), 0xA900),
        (InvalidInstance("x", reason="class-mismatch"), 0xA900), (InvalidInstance("x", reason="too-large"), 0xA700),
        (InvalidInstance("x", reason="unheard-of"), 0xC000), (UnsupportedClass("x"), 0x0122),
        (UnsupportedClass("x", reason="bad-uid"), 0x0122), (ValueError("x"), 0x0110), (MemoryError(), 0x0110),
        (errors.SealBroken("x"), 0x0110),
    ],
)
def test_examples(error: Exception, code: int) -> None:
    assert status.of_error(error).status == code


def test_an_error_class_of_tomorrow_is_answered_like_its_parent() -> None:
    class Later(errors.OutOfSpace):
        """Not in the table."""

    assert status.of_error(Later("x")) == status.ERRORS[errors.OutOfSpace]


def test_every_outcome_of_the_store_has_a_status() -> None:
    store = pytest.importorskip("archive.services.store")
    assert set(get_args(get_type_hints(store.Outcome)["status"])) == set(status.OUTCOMES)


def test_every_reason_that_the_error_names_has_a_status() -> None:
    text = InvalidInstance.__init__.__doc__ or ""
    assert set(status.REASONS) == {word.strip(" .") for word in text.split(":", 1)[1].split(",")}
