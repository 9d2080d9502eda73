"""Platforms that sign tokens for workloads, made by the tests: the shapes are those that each platform documents.

Kubernetes: Managing Service Accounts, "Schema for service account private claims". GitHub: About security hardening
with OpenID Connect. GitLab: ID token payload. SPIFFE: JWT-SVID sections 2 and 3, SPIFFE Trust Domain and Bundle 4.
"""

import datetime as dt
import hashlib
import itertools
import json
import uuid
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gatehouse.shared.protocol.jws import SigningKey
from support.authserver import ISSUER
from support.clock import FakeClock
from support.forging import encode, forge, signer

CLUSTER_ISSUER = "https://kubernetes.default.svc.cluster.local"
"""What a cluster signs as that was given no issuer of its own."""
GITHUB_ISSUER = "https://token.actions.githubusercontent.com"
GITLAB_ISSUER = "https://gitlab.example.com"
TRUST_DOMAIN = "spiffe://example.org"
LOGIN_ISSUER = "https://login.example.com/tenant/v2.0"

_NUMBERS = itertools.count(1)
_CERTIFICATES: dict[str, x509.Certificate] = {}
"""By the `kid` of their keys."""

Json = dict[str, Any]


@dataclass
class Platform:
    """A platform with signing keys of its own. It signs with the first."""

    kind: str
    issuer: str
    clock: FakeClock
    keys: list[SigningKey]
    conditions: dict[str, str]
    """Those of a trust rule for the workload that `claims` describes."""
    workload: Json
    """The claims of the workload, without those of one token."""
    lifetime: int
    """Seconds from `iat` to `exp`."""
    audience: str = ISSUER
    name: str = "platform"
    """The name of the trusted issuer."""
    header: Json = field(default_factory=dict)
    """Members of the header besides `alg` and `kid`."""
    sequence: int = 1
    """Of the bundle of a trust domain. It grows with every change (SPIFFE Trust Domain and Bundle 4.1.1)."""

    @property
    def key(self) -> SigningKey:
        return self.keys[0]

    def rotate(self, alg: str | None = None) -> SigningKey:
        """Sign with a new key from now on. The key set still holds the old ones."""
        self.sequence += 1
        name = f"{self.name} after rotation {len(self.keys)}"
        self.keys.insert(0, _key(self.kind, name, alg or self.key.alg))
        return self.key

    def jwks(self, *keys: SigningKey) -> bytes:
        """Return the key set as the platform publishes it, or one with other keys."""
        return _document(self, [_jwk(self, key) for key in keys or self.keys])

    def claims(self, **changes: Any) -> Json:
        """Return the claims of a token; a change to None removes the claim."""
        now, number = int(self.clock()), next(_NUMBERS)
        times = {"iat": now, "exp": now + self.lifetime}
        claims = {"aud": _audience(self), **times, **_of_one_token(self, now, number), **self.workload, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, header: Mapping[str, Any] | None = None, key: SigningKey | None = None, **changes: Any) -> str:
        """Return a signed token. Changes are to its claims, and those of `header` to its header; None removes."""
        return self.sign(self.claims(**changes), header=header, key=key)

    def sign(
        self, payload: Json | bytes, *, header: Mapping[str, Any] | None = None, key: SigningKey | None = None
    ) -> str:
        """Sign any payload. The signature is that of the key's algorithm, unless `header` names PS256 or RS256."""
        key = key or self.key
        members = {"alg": key.alg, "kid": key.kid, **self.header, **(header or {})}
        members = {name: value for name, value in members.items() if value is not None}
        return forge(members, payload, signer(key, pss=members.get("alg") == "PS256"))


def kubernetes(
    clock: FakeClock,
    issuer: str = CLUSTER_ISSUER,
    namespace: str = "prod",
    service_account: str = "agent",
    *,
    name: str = "cluster",
    alg: str = "RS256",
) -> Platform:
    """Return a cluster. Those with different names have different keys."""
    pod = f"{service_account}-7d9c5b6f4-x2x7q"
    workload = {
        "iss": issuer,
        "sub": f"system:serviceaccount:{namespace}:{service_account}",
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node-1", "uid": _uid("node-1")},
            "pod": {"name": pod, "uid": _uid(pod)},
            "serviceaccount": {"name": service_account, "uid": _uid(f"{namespace}/{service_account}")},
        },
    }
    conditions = {
        "/kubernetes.io/namespace": namespace,
        "/kubernetes.io/serviceaccount/name": service_account,
    }
    return Platform("kubernetes", issuer, clock, [_key("kubernetes", name, alg)], conditions, workload, 3600, name=name)


def github(
    clock: FakeClock,
    repository: str = "acme/ops",
    ref: str = "refs/heads/main",
    *,
    environment: str | None = None,
    name: str = "github",
) -> Platform:
    """Return GitHub Actions, with a job of a repository: of a pull request if the ref is that of one."""
    owner, pull_request = repository.partition("/")[0], ref.startswith("refs/pull/")
    if environment is not None:
        context = f"environment:{environment}"
    else:
        context = "pull_request" if pull_request else f"ref:{ref}"
    workflow = f"{repository}/.github/workflows/agent.yml@{ref}"
    sha = hashlib.sha1(ref.encode(), usedforsecurity=False).hexdigest()
    workload = {
        "iss": GITHUB_ISSUER,
        "sub": f"repo:{repository}:{context}",
        "environment": environment,
        "ref": ref,
        "sha": sha,
        "repository": repository,
        "repository_owner": owner,
        "repository_owner_id": _number(owner),
        "repository_id": _number(repository),
        "repository_visibility": "private",
        "run_id": "9001",
        "run_number": "10",
        "run_attempt": "2",
        "actor": "octocat",
        "actor_id": "583231",
        "workflow": "agent",
        "workflow_ref": workflow,
        "workflow_sha": sha,
        "job_workflow_ref": workflow,
        "job_workflow_sha": sha,
        "head_ref": "change" if pull_request else "",
        "base_ref": "main" if pull_request else "",
        "event_name": "pull_request" if pull_request else "push",
        "ref_type": "branch",
        "ref_protected": "false",
        "runner_environment": "github-hosted",
    }
    conditions = {"repository_id": _number(repository), "ref": ref}
    key = _key("github", name, "RS256")
    header = {"typ": "JWT", "x5t": _x5t(_certificate(key))}
    return Platform("github", GITHUB_ISSUER, clock, [key], conditions, workload, 300, name=name, header=header)


def gitlab(clock: FakeClock, *, name: str = "gitlab") -> Platform:
    """Return a GitLab instance, with a job of a branch."""
    workload = {
        "iss": GITLAB_ISSUER,
        "sub": "project_path:acme/ops:ref_type:branch:ref:main",
        "namespace_id": "72",
        "namespace_path": "acme",
        "project_id": "20",
        "project_path": "acme/ops",
        "user_id": "1",
        "user_login": "sample-user",
        "user_email": "sample-user@example.com",
        "user_access_level": "developer",
        "user_identities": [{"provider": "github", "extern_uid": "2435223452345"}],
        "pipeline_id": "574",
        "pipeline_source": "push",
        "job_id": "302",
        "ref": "main",
        "ref_type": "branch",
        "ref_path": "refs/heads/main",
        "ref_protected": "true",
        "groups_direct": ["acme/operators"],
        "runner_id": 1,
        "runner_environment": "self-hosted",
        "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        "project_visibility": "private",
        "ci_config_ref_uri": "gitlab.example.com/acme/ops//.gitlab-ci.yml@refs/heads/main",
        "ci_config_sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
    }
    conditions = {"sub": workload["sub"], "project_id": "20"}
    header = {"typ": "JWT"}
    key = _key("gitlab", name, "RS256")
    return Platform("gitlab", GITLAB_ISSUER, clock, [key], conditions, workload, 3600, name=name, header=header)


def spiffe(clock: FakeClock, path: str = "/ns/prod/sa/agent", *, name: str = "spire", alg: str = "ES256") -> Platform:
    """Return a trust domain. Its JWT-SVIDs have no `iss` and no `jti`, as those of SPIRE by default."""
    workload = {"sub": f"{TRUST_DOMAIN}{path}"}
    keys = [_key("spiffe", name, alg)]
    header = {"typ": "JWT"}
    return Platform("spiffe", TRUST_DOMAIN, clock, keys, dict(workload), workload, 300, name=name, header=header)


def oidc(clock: FakeClock, *, name: str = "login", alg: str = "RS256") -> Platform:
    """Return another OpenID provider, such as that of a cloud."""
    workload = {
        "iss": LOGIN_ISSUER,
        "sub": "8a6b1c52-0c3f-4f0e-9a57-2f1d6c1f7a11",
        "azp": "2d7e9c14-6d1c-4d6b-8f0a-7c1d9f3e5b22",
        "tid": "tenant",
        "ver": "2.0",
    }
    key = _key("oidc", name, alg)
    header = {"typ": "JWT", "x5t": _x5t(_certificate(key))} if alg != "EdDSA" else {"typ": "JWT"}
    conditions = {"sub": workload["sub"]}
    return Platform("oidc", LOGIN_ISSUER, clock, [key], conditions, workload, 3600, name=name, header=header)


PLATFORMS = {
    "kubernetes": kubernetes,
    "github": github,
    "gitlab": gitlab,
    "spiffe": spiffe,
    "oidc": oidc,
}
"""By kind."""


def _audience(platform: Platform) -> str | list[str]:
    return [platform.audience] if platform.kind in {"kubernetes", "spiffe"} else platform.audience


def _of_one_token(platform: Platform, now: int, number: int) -> Json:
    """Return the other claims that differ from token to token."""
    token_id = _uid(f"token {number}")
    match platform.kind:
        case "kubernetes":
            return {"nbf": now, "jti": token_id}
        case "github":
            return {"nbf": now - 600, "jti": token_id}
        case "gitlab":
            return {"nbf": now - 5, "jti": token_id}
        case "oidc":
            return {"nbf": now, "uti": token_id}
    return {}


def _jwk(platform: Platform, key: SigningKey) -> Json:
    """Return a key with the members that the platform publishes."""
    public: Json = key.public_jwk()
    match platform.kind:
        case "spiffe":
            # SPIFFE Trust Domain and Bundle 4.2.2: `use` says what the key verifies. SPIRE sends no `alg`.
            return {name: value for name, value in public.items() if name != "alg"} | {"use": "jwt-svid"}
        case "github":
            certificate = _certificate(key)
            return {**public, "x5c": [_der(certificate)], "x5t": _x5t(certificate)}
    return public


def _document(platform: Platform, keys: list[Json]) -> bytes:
    if platform.kind != "spiffe":
        return json.dumps({"keys": keys}).encode()
    key = _key("spiffe", f"{platform.name} X.509", "ES256")
    members = {name: value for name, value in key.public_jwk().items() if name not in {"alg", "kid"}}
    authority = {**members, "use": "x509-svid", "x5c": [_der(_certificate(key))]}
    bundle = {"keys": [authority, *keys], "spiffe_sequence": platform.sequence, "spiffe_refresh_hint": 300}
    return json.dumps(bundle).encode()


@cache
def _key(kind: str, name: str, alg: str) -> SigningKey:
    """Return the key of a platform by its name, with a `kid` as that platform makes them.

    One process of tests makes each key once.
    """
    key = SigningKey.generate(alg)
    match kind:
        case "github":
            return replace(key, kid=_uid(key.kid))
        case "spiffe":
            return replace(key, kid=key.kid[:32])
    return key


def _certificate(key: SigningKey) -> x509.Certificate:
    """Return the certificate of a key by itself, always the same one."""
    if key.kid not in _CERTIFICATES:
        _CERTIFICATES[key.kid] = _new_certificate(key)
    return _CERTIFICATES[key.kid]


def _new_certificate(key: SigningKey) -> x509.Certificate:
    private_key = key.key.private_key
    assert isinstance(private_key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens.example.com")])
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=730))
        .sign(private_key, hashes.SHA256())
    )


def _der(certificate: x509.Certificate) -> str:
    """Return a member of `x5c` (RFC 7517 4.7)."""
    return b64encode(certificate.public_bytes(Encoding.DER)).decode()


def _x5t(certificate: x509.Certificate) -> str:
    """Return an `x5t` (RFC 7517 4.8)."""
    return encode(certificate.fingerprint(hashes.SHA1()))


def _uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _number(name: str) -> str:
    """Return an id that stays with an owner or repository after a rename."""
    return str(zlib.crc32(name.encode()))
