"""What is wrong with an index attribute's value; the instance is kept all the same.

Source: PS3.5 6.2, PS3.6.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from archive.dicom import registry
from archive.dicom.attributes import Attribute
from archive.dicom.matching import normal
from archive.dicom.values import Element

_LONGEST = {"AE": 16, "AS": 4, "CS": 16, "LO": 64, "SH": 16, "IS": 12, "DS": 16, "UI": 64, "ST": 1024, "LT": 10240}
_FORMS = {
    "AS": re.compile(r"\d{3}[DWMY]"),
    "CS": re.compile(r"[A-Z0-9 _]*"),
    "DS": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"),
    "IS": re.compile(r"[+-]?\d+"),
    "UI": re.compile(r"[0-9]+(\.[0-9]+)*"),
}

_DATED = frozenset({"DA", "TM", "DT"})
_ONE_LINE = frozenset({"LO", "SH"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_USUAL = {
    "DA": re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"),
    "TM": re.compile(r"([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9](\.[0-9]{1,6})?"),
}
"""How nearly all dates and times are written; whether others are one, `normal` says."""


@lru_cache(maxsize=256)
def single(tag: int) -> bool:
    """Whether an attribute has one value at most."""
    return registry.vm_of(tag) == "1"


def faults_of(attribute: Attribute, element: Element) -> list[str]:
    """Return what is wrong with the value, in words without the value; empty when it conforms."""
    values: list[Any] = element.get("Value", [])
    vr = str(element["vr"])
    if vr == attribute.vr and len(values) <= 1:
        fault = _fault(attribute, vr, values[0]) if values else ""
        return [fault] if fault else []
    faults = []
    if vr != attribute.vr:
        faults.append(f"a VR of {vr} instead of {attribute.vr}")
    if len(values) > 1 and single(attribute.tag):
        faults.append("several values where one is allowed; each is found")
    for value in values:
        fault = _fault(attribute, vr, value)
        if fault:
            faults.append(fault)
            break
    return faults


def _fault_of_name(groups: dict[str, str]) -> str:
    if any(len(group) > 64 for group in groups.values()):
        return "a component group longer than 64 characters"
    return "a control character, which a PN has not" if any(map(_CONTROL.search, groups.values())) else ""


def _fault(attribute: Attribute, vr: str, value: Any) -> str:
    if not isinstance(value, str):
        return _fault_of_name(value) if vr == "PN" and isinstance(value, dict) else ""
    if len(value) > _LONGEST.get(vr, 1 << 32):
        return f"longer than a {vr} may be"
    form = _FORMS.get(vr)
    if form is None and vr not in _DATED:
        return f"a control character, which a {vr} has not" if vr in _ONE_LINE and _CONTROL.search(value) else ""
    dated = vr in _DATED and vr == attribute.vr
    if dated and vr in _USUAL and _USUAL[vr].fullmatch(value):
        return ""
    wrong = not normal(attribute, value) if dated else form is not None and form.fullmatch(value) is None
    return f"not a {vr}" if wrong else ""
