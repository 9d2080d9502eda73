"""The authorization server's metadata (RFC 8414)."""

import pytest
from support.assertions import KeyClient
from support.authserver import ISSUER, AuthServer
from support.platforms import PLATFORMS
from support.workloads import trust

from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE as JWT_BEARER
from gatehouse.authserver.workloads.registration import set_issuer_disabled
from gatehouse.shared.protocol.jws import SigningKey

PATH = "/.well-known/oauth-authorization-server"

"""What is checked here depends on no database."""


def test_the_metadata_lists_exactly_what_the_server_supports(authserver: AuthServer) -> None:
    response = authserver.http.get(PATH)
    assert response.status_code == 200
    assert response.content_type == "application/json"
    assert response.json == {
        "issuer": ISSUER,
        "authorization_endpoint": f"{ISSUER}/authorize",
        "token_endpoint": f"{ISSUER}/token",
        "revocation_endpoint": f"{ISSUER}/revoke",
        "introspection_endpoint": f"{ISSUER}/introspect",
        "status_list_aggregation_endpoint": f"{ISSUER}/status-lists",
        "jwks_uri": f"{ISSUER}/.well-known/jwks.json",
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["ES256", "Ed25519", "EdDSA", "PS256", "RS256"],
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
        "revocation_endpoint_auth_signing_alg_values_supported": ["ES256", "Ed25519", "EdDSA", "PS256", "RS256"],
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
    }


def test_every_published_endpoint_exists(authserver: AuthServer) -> None:
    metadata = authserver.http.get(PATH).json
    names = [name for name in metadata if name.endswith(("_endpoint", "_uri"))]
    assert len(names) == 6
    for name in names:
        assert authserver.http.options(metadata[name].removeprefix(ISSUER)).status_code == 405


@pytest.mark.divergence("D-50")
def test_every_published_authentication_method_works(authserver: AuthServer) -> None:
    methods = authserver.http.get(PATH).json["token_endpoint_auth_methods_supported"]
    assert len(methods) == 3
    for method in methods:
        if method == "private_key_jwt":
            KeyClient(authserver, SigningKey.generate("ES256")).accepted()
            continue
        client, secret = authserver.create_client(auth_method=method)
        form = {"grant_type": "client_credentials"}
        if method == "client_secret_basic":
            assert authserver.post_token(form, basic=(client.client_id, secret)).status_code == 200
        else:
            form |= {"client_id": client.client_id, "client_secret": secret}
            assert authserver.post_token(form).status_code == 200


@pytest.mark.parametrize(("kind", "further"), [("kubernetes", []), ("spiffe", ["spiffe_jwt"])])
def test_platform_tokens_are_named_only_while_an_issuer_is_trusted(
    authserver: AuthServer, kind: str, further: list[str]
) -> None:
    """RFC 8414 2. `none` is the method of the grant, and good for the token endpoint only."""
    before = authserver.http.get(PATH).json
    methods = before["token_endpoint_auth_methods_supported"]
    authserver.services.maintenance.run_once()
    assert authserver.http.get(PATH).json == before
    issuer = trust(authserver, PLATFORMS[kind](authserver.clock))
    authserver.services.maintenance.run_once()
    assert authserver.http.get(PATH).json == {
        **before,
        "grant_types_supported": ["client_credentials", JWT_BEARER],
        "token_endpoint_auth_methods_supported": [*methods, *further, "none"],
        "revocation_endpoint_auth_methods_supported": [*methods, *further],
    }
    with authserver.services.database.write() as session:
        set_issuer_disabled(session, authserver.admin, issuer.name, disabled=True)
    authserver.services.maintenance.run_once()
    assert authserver.http.get(PATH).json == before


def test_the_metadata_is_cacheable_and_not_readable_cross_origin(authserver: AuthServer) -> None:
    headers = authserver.http.get(PATH).headers
    assert headers["Cache-Control"] == "public, max-age=300"
    assert "Access-Control-Allow-Origin" not in headers


def test_there_is_no_openid_configuration(authserver: AuthServer) -> None:
    """This server is not an OpenID provider, and OpenID clients must not mistake it for one."""
    assert authserver.http.get(PATH).status_code == 200
    assert authserver.http.get("/.well-known/openid-configuration").status_code == 404
