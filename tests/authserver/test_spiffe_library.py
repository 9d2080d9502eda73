"""The JWT-SVIDs of the tests are also accepted by the Python library of SPIFFE."""

import json
import time

import pytest
from spiffe import JwtBundle, JwtSvid, TrustDomain
from spiffe.svid.errors import JwtSvidError
from support.authserver import ISSUER
from support.clock import FakeClock
from support.platforms import TRUST_DOMAIN, Platform, spiffe


def jwt_bundle(platform: Platform) -> bytes:
    """Return the bundle as the Workload API hands it to workloads: without the authorities for X.509-SVIDs."""
    bundle = json.loads(platform.jwks())
    return json.dumps({"keys": [jwk for jwk in bundle["keys"] if jwk["use"] == "jwt-svid"]}).encode()


@pytest.mark.parametrize("alg", ["ES256", "RS256"])
def test_a_svid_is_valid_for_the_library_of_spiffe(alg: str) -> None:
    # The library reads the clock of the system.
    platform = spiffe(FakeClock(time.time()), name=f"spire-{alg.lower()}", alg=alg)
    platform.rotate()
    new, old = platform.keys
    bundle = JwtBundle.parse(TrustDomain(TRUST_DOMAIN), jwt_bundle(platform))
    assert bundle.jwt_authorities.keys() == {new.kid, old.kid}
    for key in (new, old):
        svid = JwtSvid.parse_and_validate(platform.token(key=key), bundle, {ISSUER})
        assert str(svid.spiffe_id) == platform.workload["sub"]
        assert svid.audience == {ISSUER}
    expired, for_another = platform.token(exp=1), platform.token(aud=["https://elsewhere.example.com"])
    forged = platform.token(key=old, header={"kid": new.kid})
    for token in (expired, for_another, forged):
        with pytest.raises(JwtSvidError):
            JwtSvid.parse_and_validate(token, bundle, {ISSUER})
