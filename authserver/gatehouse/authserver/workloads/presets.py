"""Which claims to require of the tokens of each kind of platform, and what to be careful about."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gatehouse.authserver.workloads.kinds import NAMESPACE, SERVICE_ACCOUNT, SERVICE_ACCOUNT_UID, Kind
from gatehouse.authserver.workloads.registry import TrustedIssuer

PULL_REQUEST: Final = (
    "Every pull request of the repository has a sub that ends in :pull_request, with code that nobody has reviewed. "
    "Require ref or environment instead."
)
RECYCLED_NAMES: Final = (
    "Names of owners and repositories can be taken over after a rename or a deletion. Require repository_id, with ref "
    "or environment: an id is never given again."
)
SUBJECT_WITHOUT_IDS: Final = (
    "On github.com, repositories that were created, renamed or transferred after 15 July 2026 have another sub, with "
    "ids: repo:OWNER@ID/REPOSITORY@ID:... This one does not match theirs."
)
RECREATED_ACCOUNTS: Final = (
    "A service account that is deleted and created again, perhaps by somebody else, has the same name, and another "
    f"uid. To trust this one only, require {SERVICE_ACCOUNT_UID} too."
)
RECYCLED_IDS: Final = (
    "A SPIFFE ID is a name: anyone who may change the registration entries of the trust domain can give it to another "
    "workload, which the rule then trusts. Remove the rule before the ID is given to another one."
)
RECYCLED_PATHS: Final = (
    "Paths of groups and projects can be taken over after a rename or a deletion. Require project_id too: an id is "
    "never given again."
)

_OTHER_AUDIENCES: Final = frozenset({"sts.amazonaws.com", "api://AzureADTokenExchange", "sigstore"})
"""Audiences that the tools of other services request by default."""

_API_SERVER: Final = "https://kubernetes.default.svc"
"""How audiences of the API server of a cluster begin, if it was not given another one."""

_IMMUTABLE_SUBJECT: Final = re.compile(r"repo:[^/@:]+@[0-9]+/[^/@:]+@[0-9]+:|repository_id:[0-9]+(?::|$)", re.ASCII)
"""The start of GitHub's subjects that hold the id of the repository."""


@dataclass(frozen=True, slots=True)
class PresetClaim:
    """A claim that a trust rule may require."""

    claim: str
    """Its name, or a JSON Pointer."""
    example: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Preset:
    """The claims to require of one kind of platform, the most important first."""

    claims: Sequence[PresetClaim]
    rule: Sequence[str]
    """The names of the claims that make a good rule together."""
    audience: str
    """How a workload requests a token for this server. `{}` is the audience."""
    warnings: Sequence[str] = ()


PRESETS: Final[Mapping[str, Preset]] = {
    "kubernetes": Preset(
        (
            PresetClaim(NAMESPACE, "prod", "The namespace of the service account."),
            PresetClaim(SERVICE_ACCOUNT, "agent", "The service account."),
            PresetClaim(
                SERVICE_ACCOUNT_UID,
                "0e6b1a52-5c1f-4a57-9d3e-2f8f5b7c9a10",
                "From: kubectl get serviceaccount agent -n prod -o jsonpath={.metadata.uid}",
            ),
            PresetClaim("sub", "system:serviceaccount:prod:agent", "In place of namespace and service account."),
        ),
        rule=(NAMESPACE, SERVICE_ACCOUNT, SERVICE_ACCOUNT_UID),
        audience="Project a token into the pod: serviceAccountToken with audience: {}",
        warnings=(RECREATED_ACCOUNTS,),
    ),
    "github": Preset(
        (
            PresetClaim("repository_id", "74", "From: gh api repos/OWNER/REPOSITORY --jq .id"),
            PresetClaim("environment", "production", "The environment of the job, whose rules protect it."),
            PresetClaim("ref", "refs/heads/main", "In place of the environment, or with it."),
            PresetClaim(
                "job_workflow_ref", "acme/ops/.github/workflows/agent.yml@refs/heads/main", "The workflow of the job."
            ),
            PresetClaim("sub", "repo:acme/ops:ref:refs/heads/main", "In place of all of them; it holds names."),
        ),
        rule=("repository_id", "ref"),
        audience="Request a token in the job, with permission id-token: write, and audience={}",
        warnings=(RECYCLED_NAMES, PULL_REQUEST),
    ),
    "gitlab": Preset(
        (
            PresetClaim("sub", "project_path:acme/ops:ref_type:branch:ref:main", "The project and the branch."),
            PresetClaim("project_id", "22", "The id of the project, from its page or the API."),
            PresetClaim("ref_protected", "true", "Only protected branches and tags."),
            PresetClaim("environment", "production", "The environment of the job."),
        ),
        rule=("sub", "project_id", "ref_protected"),
        audience="Request a token in the job: id_tokens with aud: {}",
        warnings=(RECYCLED_PATHS,),
    ),
    "spiffe": Preset(
        (PresetClaim("sub", "spiffe://example.org/ns/prod/sa/agent", "The SPIFFE ID."),),
        rule=("sub",),
        audience="Fetch a JWT-SVID: spire-agent api fetch jwt -audience {}",
        warnings=(RECYCLED_IDS,),
    ),
    "oidc": Preset(
        (
            PresetClaim("sub", "agent", "The subject, as the platform documents it."),
            PresetClaim("/groups/name", "agents", "A nested member, by its JSON Pointer (RFC 6901)."),
        ),
        rule=("sub",),
        audience="Request a token from the platform with the audience {}",
    ),
}
"""By the name of the kind."""


def rule_warnings(kind: Kind, conditions: Mapping[str, str]) -> list[str]:
    """Return what an administrator should know about the conditions of a rule, in their normal form."""
    subject, warnings = conditions.get("sub", ""), []
    if subject.endswith(":pull_request"):
        warnings.append(PULL_REQUEST)
    if kind.name == "github" and subject.startswith("repo:") and not _IMMUTABLE_SUBJECT.match(subject):
        warnings.append(SUBJECT_WITHOUT_IDS)
    if kind.name == "github" and "repository_id" not in conditions and not _IMMUTABLE_SUBJECT.match(subject):
        warnings.append(RECYCLED_NAMES)
    if kind.name == "gitlab" and "project_id" not in conditions:
        warnings.append(RECYCLED_PATHS)
    if kind.name == "kubernetes" and SERVICE_ACCOUNT_UID not in conditions:
        warnings.append(RECREATED_ACCOUNTS)
    return warnings


def audience_warnings(issuer: TrustedIssuer) -> list[str]:
    """Return what an administrator should know about the audience of a trusted issuer."""
    if issuer.audience is None or not _is_default(issuer.kind, issuer.issuer, issuer.audience):
        return []
    warning = (
        f"The platform issues tokens for the audience {issuer.audience} to use elsewhere. Anyone who receives such a "
        f"token could use it here. Let workloads request a token for this server, and add {issuer.name} without "
        "--audience."
    )
    return [warning]


def _is_default(kind: Kind, issuer: str, audience: str) -> bool:
    """Tell whether a platform uses an audience by default, or for other services."""
    if audience.rstrip("/") == issuer.rstrip("/") or audience in _OTHER_AUDIENCES:
        return True
    if kind.name == "kubernetes":
        return audience.startswith(_API_SERVER)
    url = urlsplit(audience)
    # GitHub's is the page of the owner of the repository.
    is_owner = len(url.path.strip("/").split("/")) == 1
    return kind.name == "github" and is_owner and url.netloc in {"github.com", urlsplit(issuer).netloc}
