"""A modality in a process of its own: pynetdicom over mutual TLS, each file proposed in its own transfer syntax and sent unchanged.

`python -m tests.journeys.sender HOST PORT CERTIFICATES AET < paths` prints one JSON object: path -> C-STORE status, null when the
association was lost. pynetdicom's own `storescu -cx` reads and writes a data set again; this sends the file's bytes.
"""

from __future__ import annotations

import json
import ssl
import sys
import warnings
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom._config
from pynetdicom import AE, association

from tests.dimse import library

MOST_CONTEXTS = 128
ORIGINAL = association.split_dataset


def as_the_data_set_says(path: Path) -> tuple[Any, int]:
    """Return file meta and offset; the command names the UIDs of the data set, which some files' meta contradicts."""
    meta, offset = ORIGINAL(path)
    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    return meta, offset


def context(certificates: Path) -> ssl.SSLContext:
    """Trust the archive's CA and show the peer's own certificate."""
    made = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    made.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return made


def main(host: str, port: str, certificates: str, title: str) -> None:
    """Send the files named on standard input."""
    warnings.simplefilter("ignore")
    library.guard()
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True
    association.split_dataset = as_the_data_set_says  # type: ignore[assignment]
    paths = [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
    kinds = {}
    for path in paths:
        meta, _offset = as_the_data_set_says(path)
        kinds[path] = (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
    wanted = sorted(set(kinds.values()))
    statuses: dict[str, int | None] = {}
    for start in range(0, len(wanted), MOST_CONTEXTS):
        proposed = wanted[start : start + MOST_CONTEXTS]
        ae = AE(ae_title=title)
        for sop_class, syntax in proposed:
            ae.add_requested_context(sop_class, syntax)
        lane = ae.associate(host, int(port), ae_title="STRONGROOM", tls_args=(context(Path(certificates)), host))
        if not lane.is_established:
            raise SystemExit("the association was not accepted")
        for number, path in enumerate(path for path in paths if kinds[path] in proposed):
            try:
                answer = lane.send_c_store(path, msg_id=number % 65535 + 1)
                statuses[str(path)] = answer.Status if "Status" in answer else None
            except ValueError:  # this context was not accepted
                statuses[str(path)] = 0x0122
        lane.release()
    print(json.dumps(statuses))


if __name__ == "__main__":
    main(*sys.argv[1:])
