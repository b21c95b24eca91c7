"""The VR of a tag that does not come with one, by the standard's dictionary.

Source: PS3.6, PS3.5 A.1 and 7.8.
"""

from __future__ import annotations

from functools import lru_cache

from archive.dicom import registry

UID_RULE = r"[0-9]+(\.[0-9]+)*"


@lru_cache(maxsize=8192)
def vr_of(tag: int) -> str:
    """Return the VR of a tag in implicit VR; "xs" where PixelRepresentation decides between US and SS, UN where unknown."""
    if not tag & 0xFFFF:
        return "UL"
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    vr = registry.vr_of(tag)
    if vr == "US or SS":
        return "xs"
    # PS3.5 A.1: what may be OB or OW is OW in implicit VR; LUT data are as many 16-bit words either way.
    return "OW" if " or " in vr else vr if len(vr) == 2 else "UN"
