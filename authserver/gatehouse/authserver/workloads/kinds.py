"""The kinds of platforms: what their tokens look like, and which claims identify a workload."""

from dataclasses import dataclass
from typing import Final

from gatehouse.shared.protocol.jws import KEY_TYPES


@dataclass(frozen=True, slots=True)
class Identification:
    """Claims that together name a workload within its issuer."""

    claims: tuple[str, ...]
    with_one_of: tuple[str, ...] = ()
    """Claims of which a rule must have at least one, too."""
    prefixes: tuple[str, ...] = ("",)
    """What the first claim must begin with in a rule. Otherwise others could have the same value."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the tokens of one kind of platform have in common."""

    name: str
    algorithms: tuple[str, ...]
    """The default."""
    max_lifetime: int
    """Seconds. The default."""
    one_time: bool
    """Whether a token is accepted once. Only where a workload can get another one at any time."""
    identifications: tuple[Identification, ...] = (Identification(("sub",)),)
    header_members: frozenset[str] = frozenset()
    """Members of the header besides `alg`, `kid` and `typ`."""
    types: frozenset[str | None] = frozenset({None, "JWT"})
    """Values of `typ`. Never that of an access token, an ID-JAG or a DPoP proof."""


SPIFFE_SCHEME: Final = "spiffe://"

NAMESPACE: Final = "/kubernetes.io/namespace"
SERVICE_ACCOUNT: Final = "/kubernetes.io/serviceaccount/name"
SERVICE_ACCOUNT_UID: Final = "/kubernetes.io/serviceaccount/uid"

_SUBJECT = Identification(("sub",))
_THUMBPRINT = frozenset({"x5t"})

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(
            "kubernetes",
            ("RS256", "ES256"),
            max_lifetime=3600,
            # kubelet hands out the same token until it rotates the file.
            one_time=False,
            identifications=(_SUBJECT, Identification((NAMESPACE, SERVICE_ACCOUNT))),
        ),
        Kind(
            "github",
            ("RS256",),
            max_lifetime=600,
            one_time=True,
            identifications=(
                # Any repository can compose its subject of other claims, such as the environment or the workflow.
                Identification(("sub",), prefixes=("repo:", "repository:", "repository_id:")),
                # Names of owners and repositories can be taken over after a rename; the id cannot.
                Identification(("repository_id",), with_one_of=("environment", "ref")),
            ),
            header_members=_THUMBPRINT,
        ),
        # A job gets one token, and no second one.
        Kind("gitlab", ("RS256",), max_lifetime=3600, one_time=False),
        # The agent of SPIRE hands out the same token until it renews it. JWT-SVID section 3 allows both types.
        Kind("spiffe", tuple(KEY_TYPES), max_lifetime=3600, one_time=False, types=frozenset({None, "JWT", "JOSE"})),
        Kind("oidc", tuple(KEY_TYPES), max_lifetime=3600, one_time=False, header_members=_THUMBPRINT),
    )
}
"""By name."""

HEADER_MEMBERS: Final = frozenset().union(*(kind.header_members for kind in KINDS.values()))
"""Members of the header that any kind allows, besides `alg`, `kid` and `typ`."""
