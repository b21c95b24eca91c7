"""Transfer syntaxes of the standard, by what their data sets and pixel data are.

Source: PS3.5 A, PS3.6 table A-1.
"""

from __future__ import annotations

from archive.dicom import registry

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Each frame deflated by itself (PS3.5 A.4.12)."""
TRANSFER_SYNTAXES = frozenset({uid for uid, entry in registry.UIDS.items() if entry[1] == "Transfer Syntax"} | {DEFLATED_FRAMES})
"""Every transfer syntax that has a name, retired ones too."""

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Transfer syntaxes whose whole data set is one deflate stream."""
EXPLICIT_BE = "1.2.840.10008.1.2.2"
UNCOMPRESSED = frozenset({IMPLICIT_LE, EXPLICIT_LE, "1.2.840.10008.1.2.1.99", EXPLICIT_BE})
"""Those with native pixel data."""
