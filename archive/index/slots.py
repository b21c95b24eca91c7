"""Slots: the values of a search's keys as parameters of its statement, so that a statement built once serves every value of its form.

Two terms have one form when they make the same statement but for its parameters; `form_of` errs on the side of two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from archive.dicom.attributes import Attribute
from archive.dicom.matching import Empty, Match, Range, Single, UidList, Universal, Wildcard, fuzzy_words
from archive.errors import InvalidQuery
from archive.index.columns import SEVERAL

_LITERAL = re.compile(r"[^*?=]+")
_TEXT = sa.Text()
_LISTED = 8
_WORDS = 32
"""Of a name; each is a condition, and a statement of hundreds takes seconds to build, or is more than a database takes."""
_LONGEST = 3
"""Of a run of letters nothing but whether it makes a trigram decides about the statement."""


@dataclass(frozen=True, slots=True)
class Fuzzy:
    """Every one of these folded words begins a word of a person name."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, attribute: Attribute, text: str, otherwise: Match) -> Fuzzy | Match:
        """Return the fuzzy form of a person name key, or `otherwise` for what has none.

        Raises:
            InvalidQuery: more different words than a statement is built for.
        """
        if attribute.vr != "PN" or isinstance(otherwise, Universal | Empty):
            return otherwise
        words = tuple(dict.fromkeys(fuzzy_words(text)))
        if len(words) > _WORDS:
            message = f"{attribute.keyword} takes at most {_WORDS} words"
            raise InvalidQuery(message)
        return cls(words) if words else otherwise


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence has items, and their JSON holds these texts: what meets keys inside it does, and something else may."""

    texts: tuple[str, ...]


Term = Match | Fuzzy | Items


# SQLite looks at the value of a parameter that stands alone after LIMIT or GLOB when it plans, and so prepares the whole statement again
# each time it is run with another: most of what a search costs. In an expression it does not.


def at_most(name: str) -> ColumnElement[int]:
    """Return a parameter for LIMIT."""
    return sa.bindparam(name, type_=sa.BigInteger()) + sa.literal_column("0", sa.BigInteger())


def unplanned(pattern: ColumnElement[str]) -> ColumnElement[str]:
    """Return the pattern of a GLOB."""
    return pattern.op("||")(sa.literal_column("''", _TEXT))


class Slots:
    """The parameters of a statement and how each follows from the terms."""

    def __init__(self) -> None:
        """Have none."""
        self._derive: dict[str, tuple[int, Callable[[Any], Any]]] = {}

    def of(self, number: int, term: Term) -> Slot:
        """Return where values of the term with that number come from."""
        return Slot(term, number, self)

    def add(self, name: str, number: int, derive: Callable[[Any], Any]) -> None:
        """Note a parameter."""
        self._derive[name] = number, derive

    def values(self, terms: Sequence[Term]) -> dict[str, Any]:
        """Return the parameters' values for terms of the form the statement was built for."""
        return {name: derive(terms[number]) for name, (number, derive) in self._derive.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """One term: gives what follows from it as a parameter of its `slots`, or without them as it is.

    Within one statement a role says always the same of a term.
    """

    term: Term
    number: int = 0
    slots: Slots | None = None

    def __call__(self, role: str, derive: Callable[[Any], Any], kind: sa.types.TypeEngine[Any] = _TEXT) -> ColumnElement[Any]:
        """Return what `derive` makes of the term."""
        if self.slots is None:
            return sa.literal(derive(self.term), kind)
        name = f"key_{self.number}_{role}"
        self.slots.add(name, self.number, derive)
        return sa.bindparam(name, type_=kind)


def form_of(term: Term) -> Term | None:
    """Return a term without this one's values that makes the same statement; None when a statement of its own has to be built."""
    if isinstance(term, Universal | Empty):
        return term
    if isinstance(term, Range):
        return Range("x" if term.low else "", "x" if term.high else "")
    if isinstance(term, UidList):
        return UidList(("1",) * len(term.values)) if len(term.values) <= _LISTED else None
    if isinstance(term, Fuzzy | Items):
        words = ("x" * min(len(word), _LONGEST) for word in term.words) if isinstance(term, Fuzzy) else ()
        return Fuzzy(tuple(words)) if isinstance(term, Fuzzy) else Items(("x",) * len(term.texts))
    text = term.value if isinstance(term, Single) else term.pattern
    if "\U0010ffff" in text:  # nothing comes after it, so that a prefix of it has no end
        return None
    shape = _LITERAL.sub(lambda found: "x" * min(len(found[0]), _LONGEST), text)
    shape = SEVERAL + shape[1:] if text.startswith(SEVERAL) else shape
    return Single(shape) if isinstance(term, Single) else Wildcard(shape)
