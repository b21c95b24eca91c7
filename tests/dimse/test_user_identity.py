"""User identity negotiation (PS3.7 D.3.3.7): who is proven narrows what the peer may do, in every operation and on every lane."""

from __future__ import annotations

import base64
import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from archive.access import totp
from archive.access.grants import Target
from archive.db import tables
from archive.dimse.admission import parse
from archive.dimse.commitment import SOP_CLASS as COMMITMENT
from archive.ledger.audit import Kind
from archive.services.signin import SignedIn
from tests.dimse.clinic import EXPLICIT, FIND, GET, IMPLICIT, MOVE, Clinic, Receiver, clinic, context_of, identifier
from tests.services import provider
from tests.services.archives import CT, PASSWORD, instance, the_console
from tests.services.provider import Provider


def an_instance() -> Dataset:
    return pydicom.dcmread(io.BytesIO(instance(1, study="1.2.77")))


EVERYTHING = Target("everything")
FIRST, SECOND = "1.2.3", "1.2.4"


@dataclass
class Place:
    clinic: Clinic
    provider: Provider
    certificates: dict[str, Path]
    tokens: dict[str, str]

    @contextmanager
    def association(
        self, peer: str, form: int = 0, primary: str | bytes = "", secondary: str | bytes = "", *, response: bool = False,
        plain: bool = False, classes: tuple[str, ...] = (FIND,), storage: bool = False, handlers: list[Any] | None = None,
    ) -> Iterator[Association]:
        sockets: list[Any] = []
        ae = AE(ae_title=peer)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
        for uid in (*classes, *((CT,) if storage else ())):
            ae.add_requested_context(uid, [EXPLICIT, IMPLICIT])
        negotiation: list[Any] = [build_role(CT, scp_role=True)] if storage and GET in classes else []
        if form:
            item = UserIdentityNegotiation()
            item.user_identity_type, item.positive_response_requested = form, response
            item.primary_field = primary.encode() if isinstance(primary, str) else primary
            if form == 2:
                item.secondary_field = secondary.encode() if isinstance(secondary, str) else secondary
            negotiation.append(item)
        association = ae.associate(
            "127.0.0.1", self.clinic.plain_port if plain else self.clinic.tls_port, ae_title="STRONGROOM", ext_neg=negotiation,
            tls_args=None if plain else (context_of(self.certificates[peer]), "127.0.0.1"),
            evt_handlers=[*(handlers or []), (evt.EVT_CONN_OPEN, lambda event: sockets.append(event.assoc.dul.socket.socket))],
        )
        try:
            yield association
        finally:
            if association.is_established:
                association.release()
            for one in sockets:
                one.close()  # which the library leaves open after some rejections

    def studies(self, association: Association) -> set[str]:
        assert association.is_established
        asked = association.send_c_find(identifier("STUDY", StudyInstanceUID=""), FIND)
        found = {str(one.StudyInstanceUID) for status, one in asked if status.Status in (0xFF00, 0xFF01)}
        return found & {FIRST, SECOND}  # what a test stored is left out

    def found(self, peer: str, *shown: Any, **more: Any) -> set[str]:
        with self.association(peer, *shown, **more) as association:
            return self.studies(association)

    def refused(self, peer: str, *shown: Any, **more: Any) -> None:
        """A-ASSOCIATE-RJ 2/2/1; the library's requestor sometimes sees the connection close before the rejection it has received."""
        for _ in range(4):
            with self.association(peer, *shown, **more) as association:
                assert not association.is_established
                if association.is_rejected:
                    said = association.acceptor.primitive
                    assert (said.result, said.result_source, said.diagnostic) == (2, 2, 1)
                    return
        raise AssertionError

    def event(self, *kinds: Kind) -> dict[str, Any]:
        body = self.clinic.events(*kinds)[0].body
        assert body is not None
        return body


@contextmanager
def place_in(folder: Path, **dimse: Any) -> Iterator[Place]:
    with provider.running() as there, clinic(
        folder, sections={"oidc": {"issuer": there.issuer, "client_id": provider.CLIENT, "mfa_amr": ["otp"]}}, **dimse,
    ) as it:
        console, accounts = the_console(it.node), it.node.accounts
        it.put(
            *(instance(n, study=FIRST) for n in (1, 2)), *(instance(n, study=SECOND, PatientID="P2", PatientName="B") for n in (1, 2)),
        )
        certificates = {"WS": it.tls_peer("WS", target=EVERYTHING), "NARROW": it.tls_peer("NARROW", target=Target("study", SECOND))}
        it.node.peers.add(console, "CT1", ["CT1"], issue=it.folder / "CT1", roles=["modality"])
        certificates["CT1"] = it.folder / "CT1"
        it.plain_peer("OLD", target=EVERYTHING)
        for name, role, target in (
            ("mia", "technologist", Target("study", FIRST)), ("nora", "radiologist", EVERYTHING), ("otto", "technologist", EVERYTHING),
        ):
            accounts.add_user(console, name, roles=[role], password=PASSWORD)
            accounts.add_grant(console, to=name, role="radiologist", target=target)
        accounts.add_user(console, "fresh", roles=["radiologist"], password=PASSWORD, must_change=True)
        it.node.identities.bind(console, "mia", issuer=there.issuer, external_subject="mia-at-the-clinic")
        tokens = {name: accounts.create_token(console, owner=name)["token"] for name in ("mia", "nora", "otto")}
        tokens["bounded"] = accounts.create_token(console, owner="nora", studies=[SECOND])["token"]
        yield Place(it, there, certificates, tokens)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("identity")) as made:
        yield made


@pytest.fixture(autouse=True)
def _forgiven(place: Place) -> None:
    with place.clinic.node.core.database.begin() as tx:
        tx.execute(sa.delete(tables.login_attempt))
    place.provider.reset()


def test_what_is_found_is_what_both_may_see(place: Place) -> None:
    assert place.found("WS") == {FIRST, SECOND}
    assert place.found("WS", 2, "mia", PASSWORD) == {FIRST}
    assert place.found("WS", 2, "nora", PASSWORD) == {FIRST, SECOND}
    assert place.found("NARROW", 2, "nora", PASSWORD) == {SECOND}, "nobody widens what the peer may"
    assert place.found("NARROW", 2, "mia", PASSWORD) == set()
    assert place.found("WS", 2, "mia", place.tokens["mia"]) == {FIRST}, "a token in the password's place, as with HTTP Basic"
    assert place.found("WS", 5, place.tokens["mia"]) == {FIRST}
    assert place.found("WS", 5, place.tokens["bounded"]) == {SECOND}
    assert place.found("WS", 5, place.provider.signed(_claims(place))) == {FIRST}


def _claims(place: Place, **other: Any) -> dict[str, Any]:
    at = int(datetime.now(UTC).timestamp())
    honest = {"iss": place.provider.issuer, "aud": provider.CLIENT, "sub": "mia-at-the-clinic", "iat": at, "exp": at + 300}
    return {**honest, "nonce": "n", **other}


def test_what_is_fetched_and_sent_is_too(place: Place) -> None:
    for shown, there in (((), {FIRST, SECOND}), ((2, "mia", PASSWORD), {FIRST}), ((5, place.tokens["bounded"]), {SECOND})):
        came: list[str] = []

        def store(event: Any, came: list[str] = came) -> int:
            came.append(str(event.dataset.StudyInstanceUID))
            return 0

        with place.association("WS", *shown, classes=(GET,), storage=True, handlers=[(evt.EVT_C_STORE, store)]) as association:
            for study in (FIRST, SECOND):
                last = [status for status, _ in association.send_c_get(identifier("STUDY", StudyInstanceUID=study), GET)][-1]
                assert last.Status == 0
        assert set(came) == there

    receiver = Receiver("SINK")
    try:
        console = the_console(place.clinic.node)
        place.clinic.node.peers.add(
            console, "SINK", ["SINK"], networks=["127.0.0.1/32"], address=f"127.0.0.1:{receiver.port}", roles=["workstation"]
        )
        place.clinic.grant("SINK", EVERYTHING)
        place.clinic.grant("WS", EVERYTHING, role="radiologist")
        for shown, count in (((2, "mia", PASSWORD), 0), ((2, "nora", PASSWORD), 2)):
            before = len(receiver.received)
            with place.association("WS", *shown, classes=(MOVE,)) as association:
                answers = list(association.send_c_move(identifier("STUDY", StudyInstanceUID=SECOND), "SINK", MOVE))
            assert answers[-1][0].Status == 0
            assert len(receiver.received) - before == count
    finally:
        receiver.close()


def test_the_audit_names_the_user_and_the_peer_it_came_through(place: Place) -> None:
    node = place.clinic.node
    mia = node.accounts.show_user(the_console(node), "mia")["id"]
    with place.association("WS", 2, "mia", PASSWORD) as association:
        place.studies(association)
    row = place.clinic.events(Kind.SEARCHED)[0]
    assert row.body is not None
    subject = row.body["subject"]
    assert (subject["name"], subject["kind"], subject["via"], subject["through"]) == ("mia", "user", "dimse", "WS")
    assert row.principal_id == mia
    assert row.peer_id == subject["peer"]
    told = place.event(Kind.ASSOCIATION_OPENED)
    assert told["subject"]["name"] == "WS"
    assert {"user": "mia", "by": "password", "proven": True}.items() <= told["detail"].items()
    assert node.verify.run(the_console(node), "quick").findings == []


def test_storing_needs_both(place: Place) -> None:
    for shown, stores in (((), True), ((2, "mia", PASSWORD), True), ((5, place.tokens["otto"]), True), ((2, "nora", PASSWORD), False)):
        with place.association("CT1", *shown, classes=(), storage=True) as association:
            assert association.is_established == stores
            if stores:
                assert association.send_c_store(an_instance()).Status == 0
    with place.association("WS", 2, "mia", PASSWORD, storage=True) as association:
        assert [context.abstract_syntax for context in association.accepted_contexts] == [FIND], "the peer may not store"


def test_a_name_alone_proves_and_changes_nothing(place: Place) -> None:
    for plain, peer in ((False, "WS"), (True, "OLD")):
        with place.association(peer, 1, "nora", response=True, plain=plain) as association:
            assert place.studies(association) == {FIRST, SECOND}
            assert association.acceptor.user_identity is None, "no positive response"
        assert place.event(Kind.ASSOCIATION_OPENED)["detail"] == {"what": "user identity", "claimed": "nora", "proven": False}
    assert place.found("NARROW", 1, "nora") == {SECOND}
    assert place.event(Kind.SEARCHED)["subject"]["name"] == "NARROW"


@pytest.mark.parametrize("form", [3, 4])
def test_forms_that_are_not_taken_are_passed_over(place: Place, form: int) -> None:
    with place.association("NARROW", form, b"ticket", response=True) as association:
        assert place.studies(association) == {SECOND}
        assert association.acceptor.user_identity is None


@pytest.mark.parametrize("shown", [
    (2, "mia", "wrong"), (2, "nobody", PASSWORD), (2, b"\xff\xfe", b"\0\xff"), (2, "mia", "sr_AAAAAAAA_x_y"),
    (2, "fresh", PASSWORD), (2, "WS", PASSWORD), (2, "console", PASSWORD), (5, "not a token"), (5, "a.b.c"), (5, "sr_"),
    (2, "mia", "x" * 20_000), (5, "x" * 20_000), (5, b"\0\xff" * 10),
])
def test_a_proof_that_is_none_ends_the_association(place: Place, shown: tuple[Any, ...]) -> None:
    place.refused("WS", *shown)
    place.refused("WS", *shown, response=True)


def test_a_token_of_another_is_no_password(place: Place) -> None:
    place.refused("WS", 2, "mia", place.tokens["nora"])


@pytest.mark.parametrize("change", [
    {"aud": "other"}, {"iss": "https://evil.example"}, {"exp": 0}, {"sub": "stranger"}, {"aud": [provider.CLIENT, "other"]},
])
def test_a_token_of_the_provider_is_looked_at_as_closely_as_in_the_browser(place: Place, change: dict[str, Any]) -> None:
    place.refused("WS", 5, place.provider.signed(_claims(place, **change)))
    place.refused("WS", 5, provider.unsigned(_claims(place)))
    place.refused("WS", 5, provider.with_public_key(place.provider, _claims(place)))


def test_a_proof_in_the_clear_is_refused_even_when_it_is_right(place: Place) -> None:
    place.refused("OLD", 2, "mia", PASSWORD, plain=True)
    place.refused("OLD", 5, place.tokens["mia"], plain=True)
    assert place.found("OLD", plain=True) == {FIRST, SECOND}


def test_a_proof_does_not_let_a_stranger_in(place: Place) -> None:
    with place.association("WS", 2, "nora", PASSWORD) as association:
        assert association.is_established
    place.certificates["EVIL"] = place.certificates["WS"]
    with place.association("EVIL", 2, "nora", PASSWORD) as association:
        assert not association.is_established
        assert association.is_aborted or association.acceptor.primitive.diagnostic == 3


def test_guesses_are_slowed_down(place: Place) -> None:
    for _ in range(4):
        place.refused("WS", 2, "mia", "wrong")
    place.refused("WS", 2, "mia", PASSWORD)


def test_who_has_a_second_factor_shows_a_token(place: Place) -> None:
    node, console = place.clinic.node, the_console(place.clinic.node)
    begun = node.signin.password("mia", PASSWORD, address="192.0.2.7", user_agent="test")
    assert isinstance(begun, SignedIn)
    app = node.factors.begin_totp(begun.subject)
    secret = base64.b32decode(app.secret.replace(" ", ""))
    node.factors.confirm_totp(begun.subject, app.id, totp.code(secret, totp.step_of(datetime.now(UTC))))
    try:
        place.refused("WS", 2, "mia", PASSWORD)
        place.refused("WS", 5, place.provider.signed(_claims(place)))
        assert place.found("WS", 5, place.provider.signed(_claims(place, amr=["pwd", "otp"]))) == {FIRST}
        assert place.found("WS", 5, place.tokens["mia"]) == {FIRST}
    finally:
        node.accounts.reset_mfa(console, "mia")
    node.accounts.role_signs_in(console, "technologist", second_factor=True)
    try:
        place.refused("WS", 2, "mia", PASSWORD)
    finally:
        node.accounts.role_signs_in(console, "technologist", second_factor=False)


def test_what_is_taken_away_is_taken_at_the_next_question(place: Place) -> None:
    accounts, console = place.clinic.node.accounts, the_console(place.clinic.node)
    token = accounts.create_token(console, owner="nora")
    with place.association("WS", 5, token["token"]) as by_token, place.association("WS", 2, "nora", PASSWORD) as by_password:
        assert place.studies(by_token) == place.studies(by_password) == {FIRST, SECOND}
        accounts.revoke_token(console, token["id"])
        assert place.studies(by_token) == set()
        assert place.studies(by_password) == {FIRST, SECOND}
        accounts.disable_user(console, "nora")
        try:
            assert place.studies(by_password) == set()
        finally:
            accounts.enable_user(console, "nora")
    place.refused("WS", 5, token["token"])


@pytest.mark.parametrize("shown", [(2, "mia", PASSWORD), (5, "mia")])
def test_a_response_comes_when_it_is_asked_for(place: Place, shown: tuple[Any, ...]) -> None:
    proof = shown if shown[0] == 2 else (5, place.tokens["mia"])
    for asked in (True, False):
        for classes, storage in (((FIND,), False), ((), True)):
            peer = "WS" if classes else "CT1"
            with place.association(peer, *proof, response=asked, classes=classes, storage=storage) as association:
                assert association.is_established
                told = association.acceptor.user_identity
                assert (told is not None) == asked
                if told is not None:
                    assert told.server_response == b""


def test_dcmtk_proves_a_user_when_it_stores(place: Place, tmp_path: Path) -> None:
    file, jwt = tmp_path / "one.dcm", tmp_path / "token"
    file.write_bytes(instance(3, study="1.2.77"))
    jwt.write_text(place.tokens["otto"])
    certificate = place.certificates["CT1"]
    for options, fine in (
        (["--user", "mia", "--password", PASSWORD, "--pos-response"], True), (["--user", "mia", "--password", "wrong"], False),
        (["--user", "mia", "--empty-password"], False),
        (["--jwt", str(jwt), "--pos-response"], True), (["--user", "mia", "--pos-response"], None), (["--user", "mia"], True),
    ):
        secure = ["+tls", str(certificate / "key.pem"), str(certificate / "cert.pem"), "+cf", str(certificate / "ca.pem")]
        done = subprocess.run(
            ["storescu", *secure, "-aet", "CT1", "-aec", "STRONGROOM", *options, "127.0.0.1", str(place.clinic.tls_port), str(file)],
            capture_output=True, text=True, timeout=60, check=False,
        )
        if fine is not None:
            assert (done.returncode == 0) == fine, (options, done.stderr)


def test_the_library_s_lane_answers_the_same(tmp_path: Path) -> None:
    with place_in(tmp_path, receiver="pynetdicom") as place:
        for asked in (True, False):
            with place.association("CT1", 2, "mia", PASSWORD, response=asked, classes=(), storage=True) as association:
                told = association.acceptor.user_identity
                assert (told is not None) == asked
                assert association.send_c_store(an_instance()).Status == 0
        subject = place.event(Kind.STORED)["subject"]
        assert (subject["name"], subject["through"]) == ("mia", "CT1")
        with place.association("CT1", 2, "nora", PASSWORD, classes=(), storage=True) as association:
            assert not association.is_established
        place.refused("CT1", 2, "mia", "wrong", classes=(), storage=True)


def test_a_password_is_in_no_repr(place: Place) -> None:
    """What is logged by mistake holds none."""
    kept: list[bytes] = []
    with place.association("WS", 2, "mia", PASSWORD, handlers=[(evt.EVT_DATA_SENT, lambda event: kept.append(event.data))]):
        pass
    proposal = parse(kept[0])
    assert proposal.identity is not None
    assert proposal.identity.secondary == PASSWORD.encode()
    assert PASSWORD not in repr(proposal)


def test_what_is_committed_is_what_both_may_know_of(place: Place) -> None:
    """What the peer did not store and the user may not see is not there, though the peer may see it."""
    node = place.clinic.node
    place.clinic.grant("CT1", EVERYTHING)
    console, accounts = the_console(node), node.accounts
    for name, target in (("pia", Target("study", FIRST)), ("quin", EVERYTHING)):
        accounts.add_user(console, name, roles=["modality"], password=PASSWORD)
        accounts.add_grant(console, to=name, role="radiologist", target=target)
    asked = Dataset()
    asked.TransactionUID, asked.ReferencedSOPSequence = "1.9.1", []
    for uid in (f"{FIRST}.1.1", f"{SECOND}.1.1"):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
        asked.ReferencedSOPSequence.append(item)
    for shown, transaction, failed in (((2, "pia", PASSWORD), "1.9.1", [f"{SECOND}.1.1"]), ((2, "quin", PASSWORD), "1.9.2", [])):
        asked.TransactionUID = transaction
        with place.association("CT1", *shown, classes=(COMMITMENT,)) as association:
            status, _ = association.send_n_action(asked, 1, COMMITMENT, "1.2.840.10008.1.20.1.1")
            assert status.Status == 0
        key = node.commitments.list(console)[0]["id"]
        report = node.commitments.check(key)
        assert report is not None
        assert [(one.sop_instance_uid, reason) for one, reason in report.failed] == [(uid, 0x0112) for uid in failed]
