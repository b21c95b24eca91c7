"""Signing in with an OpenID provider on a real socket, honest and hostile."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from joserfc.jwk import RSAKey

from archive.access import principals, totp
from archive.access.grants import Target
from archive.config import Config
from archive.db import tables
from archive.errors import ArchiveError, Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from archive.ledger.log import AuditFilter, AuditRow
from archive.node import Node
from archive.sections import Oidc as Settings
from archive.services.clock import SteadyClock
from archive.services.oidc import Oidc, Returned
from archive.services.signin import SecondAsked, SignedIn
from tests.services import archives, provider
from tests.services.provider import Provider

DESK = {"address": "192.0.2.7", "user_agent": "test"}
MIA = "mia-at-the-clinic"


class World:
    """An archive, a provider, and a clock that is set by hand."""

    def __init__(self, node: Node, elsewhere: Provider) -> None:
        self.node, self.provider = node, elsewhere
        self.at = datetime.now(UTC).replace(microsecond=0)
        node.sessions._clock = lambda: self.at  # who is signed in is asked by the clock that signed them in
        self.console = archives.the_console(node)
        self.oidc = self.set()

    def set(self, **settings: Any) -> Oidc:
        """Sign in under other settings."""
        base: Config = self.node.config
        section = Settings(issuer=self.provider.issuer, client_id=provider.CLIENT, client_secret_file="client", **settings)
        config = msgspec.structs.replace(base, oidc=section)
        self.oidc = Oidc(self.node.core.database, self.node.core.ledger, self.node.keyring, config, lambda: self.at)
        return self.oidc

    def go(self, **more: Any) -> Returned:
        address, kept = self.oidc.begin("/studies", **more)
        return self.oidc.end(kept, self.provider.visit(address), **DESK)

    def into(self, **more: Any) -> SignedIn:
        outcome = self.go(**more).outcome
        assert isinstance(outcome, SignedIn)
        return outcome

    def refused(self) -> tuple[str, str]:
        """What somebody reads who is refused, and why in truth."""
        with pytest.raises(Unauthenticated) as refusal:
            self.go()
        return f"{refusal.value.message}; {refusal.value.remedy}", self.why()

    def why(self) -> str:
        body = self.events("signin-failed")[0].body
        assert body is not None
        return str(body["detail"].get("why"))

    def events(self, *kinds: str) -> list[AuditRow]:
        with self.node.core.database.read() as tx:
            return [row for row in self.node.core.ledger.search(tx, AuditFilter(limit=200)) if row.kind in kinds]

    def groups(self, name: str) -> set[str]:
        """Whatever the archive's own clock says of when they began."""
        with self.node.core.database.read() as tx:
            return {row["name"] for row in principals.groups_of(tx, principals.find(tx, name)["id"])}

    def forget(self) -> None:
        with self.node.core.database.begin() as tx:
            for table in (tables.external_identity, tables.login_attempt, tables.session):
                tx.execute(sa.delete(table))


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("oidc")
    archives.made(folder)
    (folder / "client").write_text(provider.SECRET + "\n")
    with provider.running() as elsewhere, archives.opened(archives.configured(folder, archive={
        "public_url": provider.CALLBACK.removesuffix("/login/oidc/callback")
    })) as node:
        console, accounts = archives.the_console(node), node.accounts
        for name in ("mia", "nora", "off", "soon"):
            accounts.add_user(console, name, email=f"{name.title()}@Clinic.example", roles=["technologist"])
        accounts.add_user(console, "guard", email="guard@clinic.example", roles=["auditor"])
        accounts.add_user(console, "chief", email="chief@clinic.example", roles=["owner"])
        accounts.disable_user(console, "off")
        accounts.assign_role(console, "soon", "auditor", since=datetime(2100, 1, 1, tzinfo=UTC))
        for name in ("readers", "night", "other"):
            accounts.add_group(console, name)
        yield World(node, elsewhere)


@pytest.fixture
def world(_place: World) -> World:
    _place.provider.reset()
    _place.provider.clock = lambda: _place.at.timestamp()
    _place.forget()
    _place.at += timedelta(hours=25)
    _place.set()
    _place.node.identities.bind(_place.console, "mia", issuer=_place.provider.issuer, external_subject=MIA)
    return _place


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_who_is_bound_comes_in(world: World, algorithm: str) -> None:
    world.provider.algorithm = algorithm
    begun = world.into()
    assert begun.subject.name == "mia"
    assert begun.token
    assert not begun.must_change
    event = world.events("signed-in")[0]
    assert event.body is not None
    assert event.body["detail"]["how"] == "oidc"
    assert event.body["detail"]["issuer"] == world.provider.issuer
    assert world.node.identities.listed(world.console)[0]["last_used_at"] == world.at
    assert world.node.sessions.of(world.console, "mia")[0]["second_factor"] is False


def test_the_way_out_says_what_it_must(world: World) -> None:
    address, kept = world.oidc.begin("/studies")
    assert f"redirect_uri={provider.CALLBACK.replace(':', '%3A').replace('/', '%2F')}&" in address + "&"
    assert "code_challenge_method=S256" in address
    assert kept not in address
    again, other = world.oidc.begin("/studies")
    assert address != again
    assert kept != other
    assert world.oidc.offered == "single sign-on"


def _hs256(world: World) -> None:
    world.provider.token = lambda claims: provider.with_public_key(world.provider, claims)


def _stranger_key(world: World) -> None:
    key = RSAKey.generate_key(2048, {"kid": "rsa"})
    world.provider.token = lambda claims: world.provider.signed(claims, key)


def _unknown_kid(world: World) -> None:
    key = RSAKey.generate_key(2048, {"kid": "nobody"})
    world.provider.token = lambda claims: world.provider.signed(claims, key)


def _none(world: World) -> None:
    world.provider.token = provider.unsigned


def _changed_after(world: World) -> None:
    def made(claims: dict[str, Any]) -> str:
        head, _, signature = world.provider.signed(claims).split(".")
        body = base64.urlsafe_b64encode(msgspec.json.encode({**claims, "sub": "nora"})).rstrip(b"=").decode()
        return f"{head}.{body}.{signature}"

    world.provider.token = made


def claims(**told: Any) -> Callable[[World], None]:
    return lambda world: world.provider.claims.update({
        name: world.at.timestamp() + value if name in ("exp", "iat", "nbf") and value is not None else value
        for name, value in told.items()
    })


HOSTILE: dict[str, tuple[Callable[[World], None], str]] = {
    "another nonce": (claims(nonce="x"), "nonce"),
    "no nonce": (claims(nonce=None), "nonce"),
    "another audience": (claims(aud="other"), "aud"),
    "no audience": (claims(aud=None), "aud"),
    "two audiences, no authorized party": (claims(aud=[provider.CLIENT, "other"]), "azp"),
    "another authorized party": (claims(azp="other"), "azp"),
    "another issuer": (claims(iss="https://evil.example"), "iss"),
    "the issuer with a slash": (lambda w: w.provider.claims.update(iss=w.provider.issuer + "/"), "iss"),
    "expired": (claims(exp=-61), "Expired"),
    "no end": (claims(exp=None), "exp"),
    "an end that is none": (lambda w: w.provider.claims.update(exp="tomorrow"), "exp"),
    "not yet": (claims(nbf=120), "nbf"),
    "made in the future": (claims(iat=3600), "iat"),
    "no subject": (claims(sub=None), "sub"),
    "an empty subject": (claims(sub=""), "sub"),
    "a subject that is a list": (claims(sub=[MIA]), "sub"),
    "another access token": (claims(at_hash="AAAAAAAAAAAAAAAAAAAAAA"), "at_hash"),
    "signed by nobody": (_none, "not taken"),
    "signed with the public key": (_hs256, "not taken"),
    "signed by a stranger under a known name": (_stranger_key, "BadSignature"),
    "signed with an unknown key": (_unknown_kid, "does not show"),
    "changed after it was signed": (_changed_after, "BadSignature"),
    "no token": (lambda w: setattr(w.provider, "token", lambda _c: ""), "DecodeError"),
    "no JSON": (lambda w: setattr(w.provider, "token", lambda _c: "a.b.c"), ""),
    "a huge token": (lambda w: setattr(w.provider, "token", lambda _c: "a" * 70_000), "too long"),
    "somebody nobody knows": (lambda w: w.provider.who.update(sub="stranger"), "nobody here"),
    "somebody who is switched off": (lambda w: _off(w), "nobody here"),
}


def _off(world: World) -> None:
    world.node.identities.bind(world.console, "off", issuer=world.provider.issuer, external_subject="off-sub")
    world.provider.who["sub"] = "off-sub"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_not_hold_lets_nobody_in(world: World, name: str) -> None:
    change, why = HOSTILE[name]
    change(world)
    before = len(world.node.sessions.of(world.console, "mia"))
    told, truth = world.refused()
    assert told == (
        "you could not be signed in this way; ask whoever manages the archive whether your account is connected, or sign in with name "
        "and password"
    )
    assert why in truth
    assert len(world.node.sessions.of(world.console, "mia")) == before


@pytest.mark.parametrize(("exp", "iat", "fine"), [(-59, 0, True), (-61, 0, False), (300, 59, True), (300, 61, False)])
def test_clocks_may_differ_by_a_minute(world: World, exp: int, iat: int, *, fine: bool) -> None:
    claims(exp=exp, iat=iat)(world)
    if fine:
        world.into()
    else:
        world.refused()


def test_a_return_counts_once_and_in_its_own_browser_alone(world: World) -> None:
    address, kept = world.oidc.begin("/studies")
    arrived = world.provider.visit(address)
    late = "the sign-in took too long, or began elsewhere"
    _, other = world.oidc.begin("/studies")
    for wrong in (other, "", "x", kept[:-4] + "AAAA", "é" * 20, "a" * 5000):
        with pytest.raises(Unauthenticated, match=late):
            world.oidc.end(wrong, arrived, **DESK)
    with pytest.raises(Unauthenticated, match=late):
        world.oidc.end(kept, {**arrived, "state": "x"}, **DESK)
    assert isinstance(world.oidc.end(kept, arrived, **DESK).outcome, SignedIn)
    world.provider.forgets_codes = False
    with pytest.raises(Unauthenticated, match=late):
        world.oidc.end(kept, arrived, **DESK)


def test_a_code_of_another_sign_in_is_not_redeemed(world: World) -> None:
    """A code somebody else was given, put into one's own return: PKCE at the provider, the nonce here."""
    theirs = world.provider.visit(world.oidc.begin("/studies")[0])
    address, kept = world.oidc.begin("/studies")
    mine = world.provider.visit(address)
    with pytest.raises(Unauthenticated):
        world.oidc.end(kept, {**mine, "code": theirs["code"]}, **DESK)
    assert "answered 400" in world.why()


def test_a_return_after_ten_minutes_is_late(world: World) -> None:
    address, kept = world.oidc.begin("/studies")
    arrived = world.provider.visit(address)
    begun = world.at
    for passed, fine in ((timedelta(minutes=10), False), (timedelta(minutes=10, microseconds=-1), True)):
        world.at = begun + passed
        if fine:
            world.oidc.end(kept, arrived, **DESK)
        else:
            with pytest.raises(Unauthenticated, match="too long"):
                world.oidc.end(kept, arrived, **DESK)


def test_an_answer_of_another_issuer_is_refused(world: World) -> None:
    for change in ({"iss": "https://evil.example"}, {"iss": None}, {"error": "access_denied", "code": None}, {"code": None}):
        address, kept = world.oidc.begin("/studies")
        arrived = {**world.provider.visit(address), **change}
        with pytest.raises(Unauthenticated, match="could not be signed in"):
            world.oidc.end(kept, {name: value for name, value in arrived.items() if value is not None}, **DESK)


def test_a_provider_that_never_says_who_answers_may_leave_it_out(world: World) -> None:
    world.provider.metadata["authorization_response_iss_parameter_supported"] = False
    world.set()
    address, kept = world.oidc.begin("/studies")
    arrived = world.provider.visit(address)
    arrived.pop("iss")
    assert isinstance(world.oidc.end(kept, arrived, **DESK).outcome, SignedIn)


def test_new_keys_are_looked_for_and_not_all_the_time(world: World) -> None:
    world.into()
    key = world.provider.keys["RS256"]
    try:
        world.provider.keys["RS256"] = RSAKey.generate_key(2048, {"kid": "new", "use": "sig"})
        world.at += timedelta(seconds=31)
        world.into()
        _unknown_kid(world)
        world.provider.asked.clear()
        for _ in range(5):
            world.refused()
        assert not [path for path in world.provider.asked if path.endswith("jwks")]
    finally:
        world.provider.keys["RS256"] = key


@pytest.mark.parametrize(("path", "answer"), [
    ("/realm/token", (302, {"Location": "http://127.0.0.1:9/"}, b"")),
    ("/realm/token", (500, {}, b"")),
    ("/realm/token", (200, {}, b"[" * 300_000)),
    ("/realm/jwks", (302, {"Location": "/realm/other"}, b"")),
    ("/realm/.well-known/openid-configuration", (404, {}, b"")),
])
def test_a_provider_that_does_not_answer_says_so(world: World, path: str, answer: tuple[int, dict[str, str], bytes]) -> None:
    world.provider.answers[path] = answer
    with pytest.raises(Unavailable, match="does not answer"):
        world.go()
    assert "/realm/other" not in world.provider.asked


@pytest.mark.parametrize("change", [
    {"issuer": "https://evil.example"}, {"token_endpoint": "http://10.0.0.1:x/"}, {"jwks_uri": "file:///etc/passwd"},
    {"authorization_endpoint": None},
])
def test_a_provider_that_says_odd_things_of_itself_is_not_used(world: World, change: dict[str, Any]) -> None:
    world.provider.metadata.update(change)
    with pytest.raises(Unavailable, match="does not answer"):
        world.go()


def test_a_provider_that_is_away_is_not_asked_by_every_visitor(world: World) -> None:
    world.provider.answers["/realm/.well-known/openid-configuration"] = (503, {}, b"")
    for _ in range(5):
        with pytest.raises(Unavailable):
            world.oidc.begin("/studies")
    assert len(world.provider.asked) == 1
    world.provider.answers.clear()
    world.at += timedelta(seconds=30)
    world.into()


def test_a_clock_that_is_set_back_does_not_keep_the_provider_away(world: World) -> None:
    world.provider.answers["/realm/.well-known/openid-configuration"] = (503, {}, b"")
    with pytest.raises(Unavailable):
        world.oidc.begin("/studies")
    world.provider.answers.clear()
    world.at -= timedelta(hours=5)
    world.oidc.begin("/studies")


def test_while_the_archives_clock_stands_the_providers_times_are_those_of_the_machine(world: World) -> None:
    clock = SteadyClock(lambda: world.at)
    clock.heard(world.at + timedelta(hours=20))
    world.oidc._clock = clock
    before = world.node.sessions._clock
    world.node.sessions._clock = clock
    try:
        subject = world.into().subject
        again = world.go(confirming=subject).outcome
        assert isinstance(again, SignedIn)
        assert again.subject.session_id == subject.session_id
    finally:
        world.node.sessions._clock = before


def test_what_it_leads_to_elsewhere_must_be_public(world: World) -> None:
    world.provider.metadata["jwks_uri"] = "http://192.168.1.1/jwks"
    with pytest.raises(Unavailable):
        world.go()


# --- first sign-ins ---


def test_nobody_is_bound_by_a_claim_unless_it_is_set(world: World) -> None:
    world.provider.who = {"sub": "n1", "preferred_username": "nora", "email": "nora@clinic.example", "email_verified": True}
    world.refused()
    world.set(bind_by="preferred_username")
    assert world.into().subject.name == "nora"
    told = world.events("user-changed")[0]
    assert told.body is not None
    assert {"what": "bound", "sub": "n1", "via": "oidc"}.items() <= told.body["detail"].items()
    world.set()
    assert world.into().subject.name == "nora", "it stays bound"
    world.set(bind_by="preferred_username")
    world.provider.who["sub"] = "n2"
    assert "nobody here" in world.refused()[1], "a name that is bound is not bound to somebody else"


@pytest.mark.parametrize(("who", "fine"), [
    ({"email": "NORA@clinic.example", "email_verified": True}, True),
    ({"email": "nora@clinic.example"}, False),
    ({"email": "nora@clinic.example", "email_verified": "true"}, False),
    ({"email": "", "email_verified": True}, False),
    ({"email": "off@clinic.example", "email_verified": True}, False),
    ({"email": "chief@clinic.example", "email_verified": True}, False),
    ({"email": "guard@clinic.example", "email_verified": True}, False),
    ({"email": "soon@clinic.example", "email_verified": True}, False),
    ({"email": ["nora@clinic.example"], "email_verified": True}, False),
])
def test_an_address_binds_when_it_was_verified_and_never_an_administrator(world: World, who: dict[str, Any], *, fine: bool) -> None:
    world.set(bind_by="email")
    world.provider.who = {"sub": "n1", **who}
    if fine:
        assert world.into().subject.name == "nora"
    else:
        assert "nobody here" in world.refused()[1]


# --- groups ---


def test_groups_follow_their_claim_and_nothing_else_does(world: World) -> None:
    world.set(groups_claim="groups", groups={"rad": "readers", "rad-night": "night", "gone": "no such group"})
    accounts = world.node.accounts
    accounts.join_group(world.console, "other", "mia")
    accounts.join_group(world.console, "night", "mia")
    roles = accounts.show_user(world.console, "mia")["roles"]
    for told, member in (
        (["rad", "gone", "admin"], {"readers", "other"}), (["rad", "rad-night"], {"readers", "night", "other"}),
        ("rad-night", {"night", "other"}), ([1, {"a": 1}], {"other"}), (["rad"], {"readers", "other"}), (None, {"other"}),
    ):
        world.provider.claims = {"groups": told}
        world.into()
        assert world.groups("mia") == member
    assert accounts.show_user(world.console, "mia")["roles"] == roles
    what = [row.body["detail"]["what"] for row in world.events("user-changed") if row.body and row.body["detail"].get("via") == "oidc"]
    assert what[:2] == ["left", "joined"]
    accounts.leave_group(world.console, "other", "mia")


def test_who_only_tries_joins_no_group(world: World) -> None:
    world.set(groups_claim="groups", groups={"rad": "readers"})
    world.provider.claims = {"groups": ["rad"], "aud": "other"}
    world.refused()
    assert world.groups("mia") == set()


# --- second factors ---


@pytest.mark.parametrize(("settings", "told", "second"), [
    ({"mfa_amr": ["otp"]}, {"amr": ["pwd", "otp"]}, True), ({"mfa_amr": ["otp"]}, {"amr": ["pwd"]}, False),
    ({"mfa_acr": ["gold"]}, {"acr": "gold"}, True), ({"mfa_acr": ["gold"]}, {"acr": "silver"}, False), ({}, {"amr": ["otp"]}, False),
])
def test_a_second_factor_counts_in_the_words_that_are_known(
    world: World, settings: dict[str, Any], told: dict[str, Any], *, second: bool
) -> None:
    world.set(**{name: tuple(value) for name, value in settings.items()})
    world.provider.claims = told
    begun = world.into()
    world.node.accounts.role_signs_in(world.console, "technologist", second_factor=True)
    standing = world.node.signin.standing(begun.subject)
    world.node.accounts.role_signs_in(world.console, "technologist", second_factor=False)
    assert standing is not None
    assert standing.level == (2 if second else 1)
    assert standing.must_enrol is not second


def test_who_has_a_second_factor_here_is_asked_for_it(world: World) -> None:
    node = world.node
    world.at = datetime.now(UTC)
    begun = world.into()
    app = node.factors.begin_totp(begun.subject)
    secret = base64.b32decode(app.secret.replace(" ", ""))
    node.factors.confirm_totp(begun.subject, app.id, totp.code(secret, totp.step_of(datetime.now(UTC))))
    world.at = datetime.now(UTC)
    asked = world.go().outcome
    assert isinstance(asked, SecondAsked)
    assert asked.kinds == {"totp"}
    with pytest.raises(Unauthenticated, match="code is wrong"):
        node.signin.second(asked.half, "000000", **DESK)
    code = totp.code(secret, totp.step_of(datetime.now(UTC)) + 1)
    assert node.signin.second(asked.half, code, **DESK).subject.name == "mia"
    signed = world.events("signed-in")[0]
    assert signed.body is not None
    assert signed.body["detail"]["how"] == "oidc and totp"
    asked = world.go().outcome
    assert isinstance(asked, SecondAsked)
    with node.core.database.begin() as tx:
        tx.execute(sa.delete(tables.external_identity))
    with pytest.raises(Unauthenticated, match="too long"):
        node.signin.second(asked.half, code, **DESK)
    node.accounts.reset_mfa(world.console, "mia")


def test_who_confirms_is_asked_anew_at_the_provider(world: World) -> None:
    begun = world.into()
    address, _ = world.oidc.begin("/me/factors", confirming=begun.subject)
    assert "prompt=login" in address
    assert "max_age=0" in address
    world.at += timedelta(minutes=6)
    world.provider.claims = {"auth_time": world.at.timestamp() - 300}
    for wrong in ({"auth_time": world.at.timestamp() - 300}, {"auth_time": None}, {"auth_time": True}):
        world.provider.claims = wrong
        with pytest.raises(Unauthenticated):
            world.go(confirming=begun.subject)
        assert "did not ask" in world.why()
    world.provider.claims = {}
    again = world.into(confirming=begun.subject)
    assert again.subject.session_id == begun.subject.session_id
    assert again.token != begun.token
    assert world.events("stepped-up")
    standing = world.node.signin.standing(again.subject)
    assert standing is not None
    assert standing.authn_at == world.at


def test_nobody_confirms_for_another(world: World) -> None:
    mine = world.into().subject
    world.node.identities.bind(world.console, "nora", issuer=world.provider.issuer, external_subject="nora-sub")
    world.provider.who = {"sub": "nora-sub"}
    with pytest.raises(Unauthenticated):
        world.go(confirming=mine)
    assert "another user's" in world.why()


# --- throttle, binding ---


def test_a_network_that_fails_is_slowed_down(world: World) -> None:
    claims(aud="other")(world)
    for _ in range(30):
        world.refused()
    world.provider.claims = {}
    with pytest.raises(Unauthenticated, match="could not be signed in") as told:
        world.go()
    assert "15 minutes" in told.value.remedy
    world.at += timedelta(minutes=15)
    world.into()


def test_binding_is_for_who_manages_users(world: World) -> None:
    identities, accounts, issuer = world.node.identities, world.node.accounts, world.provider.issuer
    accounts.add_user(world.console, "admin2", roles=["administrator"], password=archives.PASSWORD)
    begun = world.node.signin.password("admin2", archives.PASSWORD, **DESK)
    assert isinstance(begun, SignedIn)
    for who, error in ((begun.subject, None), (archives.user(world.node, "guard"), Forbidden)):
        if error is not None:
            with pytest.raises(error):
                identities.bind(who, "nora", issuer=issuer, external_subject="x")
            with pytest.raises(error):
                identities.listed(who)
        else:
            made = identities.bind(who, "nora", issuer=issuer, external_subject="x")
            assert identities.unbind(who, made["id"])["subject"] == "x"
    with pytest.raises(Forbidden):  # to become who may do more
        identities.bind(begun.subject, "chief", issuer=issuer, external_subject="x")
    accounts.add_grant(world.console, to="nora", role="radiologist", target=Target("everything"), until="1h")
    accounts.withdraw_role(world.console, "admin2", "administrator")
    accounts.add_role(world.console, "clerk", ["user-manage"])
    accounts.assign_role(world.console, "admin2", "clerk")
    with pytest.raises(Forbidden):  # to become who sees images
        identities.bind(begun.subject, "nora", issuer=issuer, external_subject="x")
    for wrong in ("", " ", "a\nb", "x" * 2000):
        with pytest.raises(InvalidRequest):
            identities.bind(world.console, "nora", issuer=issuer, external_subject=wrong)
    with pytest.raises(InvalidRequest, match="bound already"):
        identities.bind(world.console, "nora", issuer=issuer, external_subject=MIA)
    with pytest.raises(InvalidRequest, match="not clear"):
        identities.bind(world.console, "nora", external_subject="x")
    with pytest.raises(NotFound):
        identities.unbind(world.console, 4711)


def test_who_is_unbound_is_out(world: World) -> None:
    begun = world.into()
    identity = world.node.identities.listed(world.console)[0]
    world.node.identities.unbind(world.console, identity["id"])
    with pytest.raises(ArchiveError):
        world.node.signin.session(begun.token, address="192.0.2.7")
    assert "nobody here" in world.refused()[1]
