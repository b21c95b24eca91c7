"""What every endpoint needs: one table, walked by a test; an endpoint without a row answers nobody.

The table says who may knock. Which objects open is decided by services, inside the statement that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Flask, g, request

from archive.access.demands import Standing
from archive.access.permissions import Permission
from archive.errors import Forbidden
from archive.web import session, share_session
from archive.web.context import archive

DICOMWEB_BLUEPRINTS = frozenset({"dicomweb", "datastores"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What an endpoint needs: nothing (`public`), or a credential and the permission its service asks for (NONE: any).

    `share`: an opened share link, and no other credential.
    """

    need: Permission = Permission.NONE
    public: bool = False
    share: bool = False


PUBLIC = Rule(public=True)
SIGNED_IN = Rule()

ENDPOINTS: dict[str, Rule] = {
    "static": PUBLIC,
    "probes.healthz": PUBLIC,
    "probes.readyz": PUBLIC,
    "probes.metrics": PUBLIC,  # loopback, or a token of its own
    "dicomweb.store": Rule(Permission.STORE),
    "dicomweb.store_study": Rule(Permission.STORE),
    "dicomweb.search_studies": Rule(Permission.SEARCH),
    "dicomweb.search_series": Rule(Permission.SEARCH),
    "dicomweb.search_instances": Rule(Permission.SEARCH),
    "dicomweb.search_study_series": Rule(Permission.SEARCH),
    "dicomweb.search_study_instances": Rule(Permission.SEARCH),
    "dicomweb.search_series_instances": Rule(Permission.SEARCH),
    "dicomweb.retrieve_study": Rule(Permission.ORIGINAL),
    "dicomweb.retrieve_series": Rule(Permission.ORIGINAL),
    "dicomweb.retrieve_instance": Rule(Permission.ORIGINAL),
    "dicomweb.delete_study": Rule(Permission.DELETE),
    "dicomweb.delete_series": Rule(Permission.DELETE),
    "dicomweb.delete_instance": Rule(Permission.DELETE),
    "dicomweb.study_metadata": Rule(Permission.METADATA),
    "dicomweb.series_metadata": Rule(Permission.METADATA),
    "dicomweb.instance_metadata": Rule(Permission.METADATA),
    "dicomweb.study_zip": Rule(Permission.ORIGINAL),  # and the right to send or to share
    "dicomweb.series_zip": Rule(Permission.ORIGINAL),
    "dicomweb.frames": Rule(Permission.PIXELS),
    "dicomweb.bulk": Rule(Permission.PIXELS),
    "dicomweb.capabilities": PUBLIC,  # what is offered, never what is held
    "dicomweb.wado_uri": Rule(Permission.PIXELS),
    "dicomweb.wado_uri_root": Rule(Permission.PIXELS),
    "dicomweb.rendered_study": Rule(Permission.PIXELS),
    "dicomweb.rendered_series": Rule(Permission.PIXELS),
    "dicomweb.rendered_instance": Rule(Permission.PIXELS),
    "dicomweb.rendered_frames": Rule(Permission.PIXELS),
    "dicomweb.study_thumbnail": Rule(Permission.PIXELS),
    "dicomweb.series_thumbnail": Rule(Permission.PIXELS),
    "dicomweb.instance_thumbnail": Rule(Permission.PIXELS),
    "dicomweb.frame_thumbnail": Rule(Permission.PIXELS),
    "dicomweb.ups_create": Rule(Permission.WORKLIST),
    "dicomweb.ups_search": Rule(Permission.WORKLIST),
    "dicomweb.ups_retrieve": Rule(Permission.WORKLIST),
    "dicomweb.ups_update": Rule(Permission.WORKLIST),
    "dicomweb.ups_change_state": Rule(Permission.WORKLIST),
    "dicomweb.ups_request_cancel": Rule(Permission.WORKLIST),
    "dicomweb.ups_subscribe": Rule(Permission.WORKLIST),
    "dicomweb.ups_unsubscribe": Rule(Permission.WORKLIST),
    "dicomweb.ups_suspend": Rule(Permission.WORKLIST),
    "dicomweb.ups_connect": SIGNED_IN,
}
"""Endpoint -> rule. A blueprint adds its rows with `declare` before it is registered."""


FRESH = frozenset({
    "dicomweb.delete_study", "dicomweb.delete_series", "dicomweb.delete_instance", "dicomweb.study_zip", "dicomweb.series_zip",
    "api.study_shred",
    "api.grant_add", "api.grant_revoke", "api.access_request_decide", "api.break_glass_open", "pages.break_glass", "pages.access_decision",
    "api.rule_add", "api.rule_enable", "api.rule_apply", "api.rule_remove",
    "api.review_decide", "api.review_close", "pages.review_decide", "pages.review_close",
    "api.token_add", "api.user_password", "api.user_role_add", "api.user_role_remove",
    "api.user_remove", "api.identity_bind", "api.identity_unbind", "api.group_join", "api.group_leave",
    "api.group_remove", "api.role_add", "api.role_change", "api.role_remove",
    "api.policy_apply", "api.approval_approve", "pages.approval_approve",
    "pages.approval_refuse",
    "api.approval_refuse",
    "api.role_sign_in", "api.user_factors_reset",
    "api.my_totp_begin", "api.my_factor_remove", "api.my_recovery_codes", "pages.factor_add", "pages.factor_remove", "pages.codes",
    "pages.passkey_add_options", "api.share_add", "api.share_code", "pages.share", "pages.share_code",
    "api.user_add", "api.user_change", "api.peer_add", "api.peer_set", "api.peer_renew", "api.peer_remove", "api.peer_enrol",
    "api.forward_rule_add", "api.webhook_add", "api.album_share", "api.syslog_again",
})
"""What a browser's session does only within minutes of its user having proved who they are; a token has its own bounds instead."""

BEFORE_CHANGE = frozenset({"pages.password", "pages.logout"})
"""What a session may do whose password somebody else gave."""

BEFORE_FACTOR = BEFORE_CHANGE | {
    "pages.factors", "pages.factor_add", "pages.factor_confirm", "pages.passkey_add_options", "pages.passkey_add", "pages.confirm",
    "pages.confirm_passkey_options", "pages.confirm_passkey", "pages.confirm_oidc", "api.my_factors", "api.my_totp_begin",
    "api.my_totp_confirm", "api.session", "api.session_confirm",
}
"""What a session may do whose user's role asks for a second factor that is not set up yet."""


class PasswordMustChange(Forbidden):
    """The session's password was handed out, and opens nothing but its own change."""

    code = "password-must-change"

    def __init__(self) -> None:
        """The text is fixed."""
        super().__init__("change the password you were given first", remedy="sign in with the browser, which asks for a new one")


class FactorMissing(Forbidden):
    """A role asks for a second factor, and the session began without one."""

    code = "second-factor-missing"

    def __init__(self) -> None:
        """The text is fixed."""
        super().__init__("your role asks for a second factor", remedy="set one up under /me/factors, or with POST /api/me/factors/totp")


class StepUp(Forbidden):
    """What is asked for needs a user who proved a moment ago who they are."""

    code = "step-up"

    def __init__(self) -> None:
        """The text is fixed."""
        super().__init__(
            "confirm first that it is you", remedy="send the password or a code to POST /api/session/confirm, or open /me/confirm",
        )


def declare(rows: dict[str, Rule]) -> None:
    """Add the rows of another blueprint.

    Raises:
        ValueError: an endpoint has another row already.
    """
    for endpoint, rule in rows.items():
        if ENDPOINTS.setdefault(endpoint, rule) != rule:
            message = f"endpoint {endpoint} has two rules"
            raise ValueError(message)


def rule_of(endpoint: str) -> Rule | None:
    """Return an endpoint's rule; DICOMweb of another datastore follows the default one's."""
    blueprint, _, name = endpoint.rpartition(".")
    return ENDPOINTS.get(f"dicomweb.{name}" if blueprint in DICOMWEB_BLUEPRINTS else endpoint)


def register(app: Flask) -> None:
    """Authenticate before anything else of a request runs."""
    app.before_request(enforce)


def enforce() -> None:
    """Let a request through, or refuse it.

    Raises:
        Unauthenticated, CrossSite.
        LookupError: the endpoint has no row; nobody gets in.
    """
    g.subject = None
    if request.endpoint is None or request.method == "OPTIONS":
        return  # nothing matched: 404, 405 or the list of methods, the same for everyone
    rule = rule_of(request.endpoint)
    if rule is None:
        message = f"endpoint {request.endpoint} has no rule in web/permissions.py"
        raise LookupError(message)
    if rule.public:
        session.refuse_foreign_forms()
        return
    blueprint, _, name = request.endpoint.rpartition(".")
    if rule.share or share_session.comes_by_share(blueprint, name):
        g.subject = share_session.authenticate()
        return
    asker = session.authenticate(dicomweb=request.blueprint in DICOMWEB_BLUEPRINTS)
    g.standing = None
    if asker.via == "web":
        g.standing = standing = archive().signin.standing(asker)
        if standing is not None:
            _owes_nothing(request.endpoint, standing)
    g.subject = asker


def needs_fresh(endpoint: str) -> bool:
    """Return whether an endpoint asks a session's user again; DICOMweb of another datastore follows the default one's."""
    blueprint, _, name = endpoint.rpartition(".")
    return (f"dicomweb.{name}" if blueprint in DICOMWEB_BLUEPRINTS else endpoint) in FRESH


def _owes_nothing(endpoint: str, standing: Standing) -> None:
    """Let a session through that has done what it must do first.

    Raises:
        PasswordMustChange, FactorMissing, StepUp.
    """
    if standing.must_change and endpoint not in BEFORE_CHANGE:
        raise PasswordMustChange
    if standing.must_enrol and endpoint not in BEFORE_FACTOR:
        raise FactorMissing
    if needs_fresh(endpoint) and not archive().signin.fresh(standing):
        raise StepUp
