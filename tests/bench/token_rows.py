"""Rows of the token endpoint, by secret and by key, compared with oidc-provider."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import assertions, peers
from bench.contest import Contestant
from bench.load import Load, post_form, write_requests
from bench.row import Bench, Outcome
from bench.servers import SCOPE, UNCOUNTED, Server, Stack, basic, claims_of
from bench.verdicts import Target
from joserfc.jwk import ECKey


def token_answer(body: bytes) -> dict[str, Any]:
    """Return what a token response says, with the claims that every issuer must choose alike."""
    response = json.loads(body)
    claims = claims_of(response["access_token"])
    same = {name: claims[name] for name in ("sub", "client_id", "aud", "scope")}
    return {**same, "lifetime": claims["exp"] - claims["iat"], "expires_in": response["expires_in"]}


def secret_request(server: Server, client: Mapping[str, Any]) -> bytes:
    """Return a token request by client_secret_basic as it is sent."""
    form = {"grant_type": "client_credentials", "scope": "env:read"}
    return post_form(f"{server.url}/token", form, basic(client))


def by_secret(name: str, server: Server, client: Mapping[str, Any]) -> Contestant:
    """Request tokens by client_secret_basic."""

    def prepare(file: Path, _: int) -> Load:
        write_requests(file, [secret_request(server, client)])
        return Load(server.url, file, '"access_token"')

    return Contestant(name, server, prepare, token_answer)


def by_key(name: str, server: Server, client_id: str, key: Path) -> Contestant:
    """Request tokens by private_key_jwt, each with a new assertion."""
    url = f"{server.url}/token"

    def prepare(file: Path, number: int) -> Load:
        write_requests(file, assertions.requests(url, server.url, client_id, key, number))
        return Load(url, file, '"access_token"', once=True)

    return Contestant(name, server, prepare, token_answer)


def oidc_client(client: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    """Return a client of ours as it is registered with oidc-provider."""
    return {
        "client_id": client["client_id"],
        "grant_types": ["client_credentials"],
        "redirect_uris": [],
        "response_types": [],
        "scope": SCOPE,
        "token_endpoint_auth_method": client["token_endpoint_auth_method"],
        **members,
    }


def oidc_servers(bench: Bench, ours: Stack, client: dict[str, Any]) -> Iterable[tuple[str, Server]]:
    """Start oidc-provider without and with our duties, with one client. Yields the names and servers."""
    for peer, duties in ((peers.OIDC, None), (peers.OIDC_DUTIES, str(bench.folder / "oidc-provider.db"))):
        options = {"resource": ours.resource, "clients": [client], "duties": duties}
        for server in bench.peer(peer, options):
            yield peer.name, server


def by_secret_row(bench: Bench) -> Outcome:
    """`/token` by client_secret_basic, one client."""
    ours = bench.installation("authserver")
    client = ours.create_client("bench", SCOPE)
    registered = oidc_client(client, client_secret=client["client_secret"])
    theirs = [by_secret(name, server, client) for name, server in oidc_servers(bench, ours, registered)]
    uncounted = bench.installation("authserver", name=UNCOUNTED, counts=False)
    theirs += [by_secret(UNCOUNTED, uncounted.authserver, uncounted.create_client("bench", SCOPE)).uncompared()]
    targets = {peers.OIDC.name: Target(0.95, 1.2), peers.OIDC_DUTIES.name: Target(0.75, 0.9), UNCOUNTED: None}
    outcome = bench.contest([by_secret("ours", ours.authserver, client), *theirs], targets)
    return outcome.with_memory("ours", Target(110, 125))


def by_key_row(bench: Bench) -> Outcome:
    """`/token` by private_key_jwt, one client, a new assertion in each request."""
    ours = bench.installation("authserver")
    key = bench.folder / "bench.pem"
    client = ours.create_client("bench", SCOPE, "--generate-key", str(key))
    registered = oidc_client(client, jwks=_public_keys(key), token_endpoint_auth_signing_alg="ES256")
    client_id = client["client_id"]
    theirs = [by_key(name, server, client_id, key) for name, server in oidc_servers(bench, ours, registered)]
    targets = {peers.OIDC.name: Target(1.3, 1.7), peers.OIDC_DUTIES.name: Target(0.9, 1.0)}
    return bench.contest([by_key("ours", ours.authserver, client_id, key), *theirs], targets, Target(1.0, 2.5))


def _public_keys(key: Path) -> dict[str, Any]:
    return {"keys": [ECKey.import_key(key.read_bytes()).as_dict(private=False)]}
