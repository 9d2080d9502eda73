"""Rows of the token endpoint with platform tokens, compared with assertions that a client signs itself."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench import assertions
from bench.contest import Contestant
from bench.load import Load, write_requests
from bench.row import Bench, Outcome
from bench.servers import SCOPE, Server, Stack
from bench.token_rows import by_key, token_answer
from bench.verdicts import Target
from joserfc.jwk import RSAKey

_KUBERNETES: Mapping[str, Any] = {
    "iss": "https://cluster.example.com",
    "sub": "system:serviceaccount:prod:agent",
    "kubernetes.io": {
        "namespace": "prod",
        "node": {"name": "node-1", "uid": "3b1f4d3e-2a51-4b43-9f5b-0d6d0a4f9a11"},
        "pod": {"name": "agent-7c9d8b6f5-x2x4z", "uid": "a1f5c7d2-6a3e-4f0b-8f7e-7f1c2b9d0e55"},
        "serviceaccount": {"name": "agent", "uid": "c0ffee00-1111-4222-8333-444455556666"},
    },
}
_GITHUB: Mapping[str, Any] = {
    "iss": "https://token.actions.githubusercontent.com",
    "sub": "repo:acme/ops:ref:refs/heads/main",
    "ref": "refs/heads/main",
    "repository": "acme/ops",
    "repository_id": "74",
    "repository_owner": "acme",
    "repository_owner_id": "65",
    "event_name": "push",
    "job_workflow_ref": "acme/ops/.github/workflows/deploy.yml@refs/heads/main",
    "runner_environment": "github-hosted",
}


def reusable(bench: Bench) -> Outcome:
    """`/token` by a token of a cluster, the same in every request, and by a new client assertion each."""
    return _contest(bench, "kubernetes", _KUBERNETES, "platform token", Target(0.9, 0.9), once=False)


def single_use(bench: Bench) -> Outcome:
    """`/token` by a new token of a CI job each, which is spent, and by a new client assertion each."""
    return _contest(bench, "github", _GITHUB, "platform token for one use", Target(1.1, 1.1), once=True)


def _contest(bench: Bench, kind: str, claims: Mapping[str, Any], name: str, target: Target, *, once: bool) -> Outcome:
    ours = bench.installation("authserver")
    key = bench.folder / "bench.pem"
    signing = ours.create_client("assertions", SCOPE, "--generate-key", str(key))
    asserted = by_key("private_key_jwt", ours.authserver, signing["client_id"], key)
    kid, platform_key = _trust(ours, bench.folder, kind, claims)
    made = partial(
        assertions.with_platform_tokens,
        f"{ours.issuer}/token",
        {**claims, "aud": ours.issuer},
        kid,
        platform_key,
    )
    platform = _by_platform(name, ours.authserver, made, once=once)
    return bench.contest([platform, asserted.uncompared()], {asserted.name: target}, None)


def _trust(ours: Stack, folder: Path, kind: str, claims: Mapping[str, Any]) -> tuple[str, Path]:
    """Register a platform, and a client for a workload of it. Return the `kid` and the file of its key."""
    key = RSAKey.generate_key(2048, {"kid": "platform", "use": "sig", "alg": "RS256"})
    key_file, jwks = folder / "platform.pem", folder / "platform.json"
    key_file.write_bytes(key.as_pem(private=True))
    jwks.write_text(json.dumps({"keys": [key.as_dict(private=False)]}), encoding="utf-8")
    ours.run("authserver", "issuer", "add", kind, "--issuer", claims["iss"], "--kind", kind, "--jwks-file", str(jwks))
    client = ours.create_client("platform", SCOPE, "--auth-method", "workload_identity")
    ours.run(
        *("authserver", "client", "trust", "add", client["client_id"]),
        *("--issuer", kind, "--claim", f"sub={claims['sub']}"),
    )
    return "platform", key_file


def _by_platform(name: str, server: Server, made: Callable[[int], Iterator[bytes]], *, once: bool) -> Contestant:
    """Request tokens by platform tokens: a new one each, or one for the whole round."""

    def prepare(file: Path, number: int) -> Load:
        write_requests(file, made(number) if once else [next(made(1))])
        return Load(f"{server.url}/token", file, '"access_token"', once=once)

    return Contestant(name, server, prepare, token_answer).uncompared()
