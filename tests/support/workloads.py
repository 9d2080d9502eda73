"""Clients that authenticate with the tokens of a platform, on a server of the tests."""

from collections.abc import Mapping
from typing import Any

from werkzeug.test import TestResponse

from gatehouse.authserver.clients.assertions import ASSERTION_TYPE
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE as JWT_BEARER
from gatehouse.authserver.workloads.platform_token import JWT_SPIFFE
from gatehouse.authserver.workloads.registration import IssuerRegistration, add_issuer
from gatehouse.authserver.workloads.registry import KeyLocation, TrustedIssuer
from gatehouse.authserver.workloads.rule_registration import add_rule
from gatehouse.authserver.workloads.rules import Rule
from support.authserver import AuthServer, token_form
from support.platforms import PLATFORMS, Platform

GIVEN_KEYS = KeyLocation(discovery=False, jwks_uri=None, ca_file=None, bearer_token_file=None)
"""The keys of a trusted issuer, as an admin gives them in a file."""

DISCOVERY = KeyLocation(discovery=True, jwks_uri=None, ca_file=None, bearer_token_file=None)
"""Keys that the metadata of the issuer names."""

REFUSALS = {"assertion": (401, "invalid_client"), "grant": (400, "invalid_grant")}
"""The status and the error code of a refused token, by the form of the request."""

FORMS = tuple(REFUSALS)
"""The two forms of a request with a platform token: as a client assertion, and as the grant itself."""


def trust(server: AuthServer, platform: Platform, **changes: Any) -> TrustedIssuer:
    """Add a platform as a trusted issuer, with its keys, and with changes to the registration."""
    registration = {
        "name": platform.name,
        "issuer": platform.issuer,
        "kind": platform.kind,
        "location": GIVEN_KEYS,
        "jwks": platform.jwks(),
        **changes,
    }
    with server.services.database.write() as session:
        return add_issuer(session, server.admin, IssuerRegistration(**registration))


def add_trust(server: AuthServer, client: Client, issuer: str, conditions: Mapping[str, str]) -> Rule:
    """Add a trust rule."""
    with server.services.database.write() as session:
        return add_rule(session, server.admin, client.client_id, issuer, conditions)


class WorkloadClient:
    """A client of a workload on a platform, which the server trusts unless it already does."""

    def __init__(
        self,
        server: AuthServer,
        platform: Platform,
        conditions: Mapping[str, str] | None = None,
        *,
        issuer: TrustedIssuer | None = None,
        **changes: Any,
    ) -> None:
        """Register it. `changes` are to the registration of the trusted issuer."""
        self.server = server
        self.platform = platform
        self.issuer = issuer or trust(server, platform, **changes)
        self.client: Client = server.create_client(auth_method="workload_identity")[0]
        self.rule = add_trust(server, self.client, self.issuer.name, conditions or platform.conditions)

    def post(self, form: str, token: str, **parameters: str) -> TestResponse:
        """Send a token request in one of the FORMS."""
        if form == "grant":
            return self.server.post_token({"grant_type": JWT_BEARER, "assertion": token, **parameters})
        assertion = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": token}
        return self.server.post_token(token_form(**{**assertion, **parameters}))

    def post_svid(self, token: str, **parameters: str) -> TestResponse:
        """Send a token request with a client assertion of the type for SPIFFE."""
        return self.post("assertion", token, client_assertion_type=JWT_SPIFFE, **parameters)

    def accepted(self, form: str, token: str | None = None) -> dict[str, Any]:
        """Check that a token, by default a faultless one, gets an access token for the client. Return its claims."""
        response = self.post(form, self.platform.token() if token is None else token)
        assert response.status_code == 200, (form, response.text)
        _, claims = self.server.read_token(response)
        assert (claims["sub"], claims["client_id"]) == (self.client.client_id, self.client.client_id)
        return claims

    def refused(self, form: str, token: str, reason: str, **parameters: str) -> dict[str, Any]:
        """Check the uniform response to a refused token, and its reason in the audit log. Return the audit row."""
        return self.check_refusal(form, self.post(form, token, **parameters), reason)

    def check_refusal(self, form: str, response: TestResponse, reason: str) -> dict[str, Any]:
        """Check the uniform response to a refused token, and its reason in the audit log. Return the audit row."""
        assert (response.status_code, response.json.get("error")) == REFUSALS[form], (form, reason, response.text)
        assert response.json.keys() == {"error", "error_description", "request_id"}
        [row] = self.server.audit(request_id=response.json["request_id"])
        assert row["reason"] == reason, form
        return row


def accepted_in_both_forms(*clients: WorkloadClient) -> None:
    """Check that a faultless token of each client is accepted in both forms."""
    for client in clients:
        for form in FORMS:
            client.accepted(form)


def refused_in_both_forms(client: WorkloadClient, token: str, reason: str, **parameters: str) -> None:
    """Check that a token is refused in both forms, and the reason in the audit log."""
    for form in FORMS:
        client.refused(form, token, reason, **parameters)


Workloads = Mapping[str, WorkloadClient]
"""One client of a workload on each kind of platform, by kind."""


def workloads_of_each_kind(server: AuthServer) -> Workloads:
    """Register a client of a workload on each kind of platform."""
    return {kind: WorkloadClient(server, make(server.clock)) for kind, make in PLATFORMS.items()}
