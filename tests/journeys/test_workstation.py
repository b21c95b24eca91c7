"""A workstation joins by the command line, sees nothing, is given a study, finds it and fetches it, over TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from pynetdicom import AE, build_role, evt

from tests.dimse.clinic import FIND, GET, context_of, identifier
from tests.journeys.running import RunningArchive

EXPLICIT = "1.2.840.10008.1.2.1"


def test_a_workstation(demo: RunningArchive, program: Callable[[str, str], str]) -> None:
    certificate = demo.folder / "ws"
    demo.json("peer", "add", "WS1", "--aet", "WS1", "--issue", str(certificate), "--role", "workstation")
    port = str(demo.json("status")["dimse_tls"]["port"])

    def found() -> str:
        done = subprocess.run([
            program("findscu", "dcmtk"), "+tls", str(certificate / "key.pem"), str(certificate / "cert.pem"), "+cf",
            str(certificate / "ca.pem"), "-v", "-aet", "WS1", "-aec", "STRONGROOM", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k",
            "StudyInstanceUID=", "-k", "SOPClassesInStudy", "-k", "NumberOfStudyRelatedInstances", "127.0.0.1", port,
        ], capture_output=True, text=True, timeout=60, check=False, errors="replace")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "(Pending)" not in found()
    admin = demo.client(demo.token("admin"))
    study = admin.search_for_studies(limit=1)[0]["0020000D"]["Value"][0]
    demo.json("grant", "add", "--to", "WS1", "--role", "workstation", "--study", study)
    output = found()
    assert output.count("(Pending)") == 1
    assert study in output

    ae, came = AE(ae_title="WS1"), []
    sop_classes = sorted({one["00080016"]["Value"][0] for one in admin.search_for_instances(study)})
    for uid in (FIND, GET):
        ae.add_requested_context(uid)
    for uid in sop_classes:
        ae.add_requested_context(uid, EXPLICIT)

    def keeps(event: Any) -> int:
        came.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    association = ae.associate(
        "127.0.0.1", int(port), ae_title="STRONGROOM", tls_args=(context_of(certificate), "127.0.0.1"),
        ext_neg=[build_role(uid, scp_role=True) for uid in sop_classes], evt_handlers=[(evt.EVT_C_STORE, keeps)],
    )
    assert association.is_established
    *_, (status, _) = association.send_c_get(identifier("STUDY", StudyInstanceUID=study), GET)
    association.release()
    assert status.Status == 0
    assert sorted(came) == sorted(one["00080018"]["Value"][0] for one in admin.search_for_instances(study))
