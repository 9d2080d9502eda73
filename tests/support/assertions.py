"""Client assertions (RFC 7523 section 2.2), valid and invalid."""

import itertools
import json
from typing import Any

from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registry import Client
from gatehouse.shared.protocol.jws import SigningKey
from support.authserver import ISSUER, AuthServer, token_form
from support.clock import FakeClock
from support.forging import forge, signer

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def public_jwk(key: SigningKey, **changes: Any) -> dict[str, Any]:
    """Return a key as a client registers it; a change to None removes the member."""
    return {name: value for name, value in {**key.public_jwk(), **changes}.items() if value is not None}


def jwks(*keys: dict[str, Any]) -> bytes:
    """Return a JWK set."""
    return json.dumps({"keys": list(keys)}).encode()


class KeyClient:
    """A client registered for private_key_jwt, and its assertions."""

    def __init__(self, server: AuthServer, key: SigningKey, registered: bytes | None = None, **changes: Any) -> None:
        self.server = server
        self.key = key
        self.client: Client = server.create_client(
            auth_method="private_key_jwt", jwks=registered or jwks(public_jwk(key)), **changes
        )[0]
        self._jtis = (f"jti-{number}" for number in itertools.count())

    @property
    def clock(self) -> FakeClock:
        return self.server.clock

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims that the SDK makes, with changes; a change to None removes the claim."""
        now, client_id = int(self.clock()), self.client.client_id
        claims = {"iss": client_id, "sub": client_id, "aud": ISSUER, "iat": now, "exp": now + 300}
        claims |= {"jti": next(self._jtis), **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def assertion(
        self, claims: dict[str, Any] | bytes | None = None, *, key: SigningKey | None = None, **header: Any
    ) -> str:
        """Return a signed assertion; without `kid`, as the SDK sends it."""
        key = key or self.key
        members = {"alg": key.alg, "typ": "JWT", **header}
        members = {name: value for name, value in members.items() if value is not None}
        sign = signer(key, pss=members["alg"] == "PS256")
        return forge(members, self.claims() if claims is None else claims, sign)

    def post(self, assertion: str, **form: str) -> TestResponse:
        """Send a token request with an assertion."""
        return self.server.post_token(
            token_form(**{"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion, **form})
        )

    def accepted(self) -> None:
        """Check that a valid assertion gets a token: the control for every refusal."""
        response = self.post(self.assertion())
        assert response.status_code == 200, response.text

    def refused(self, response: TestResponse, reason: str) -> None:
        """Check the uniform response to a failed authentication, and that the audit log names the failed check."""
        assert (response.status_code, response.json["error"]) == (401, "invalid_client")
        assert "assertion" not in response.text
        [row] = self.server.audit(request_id=response.json["request_id"])
        assert row["reason"] == reason
