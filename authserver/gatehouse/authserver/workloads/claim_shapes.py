"""What the claims of each kind of platform look like: conditions that never match, or probably do not. Pure: no I/O.

A rule that can never match is safe and useless: its author would look for the mistake in the token. What is certain is
refused; what a platform may change causes a warning.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from gatehouse.authserver.workloads.kinds import NAMESPACE, SERVICE_ACCOUNT, SERVICE_ACCOUNT_UID, Kind
from gatehouse.authserver.workloads.rules import InvalidRule, claim_path
from gatehouse.shared.protocol.redaction import as_word

_CHECKED: Final = "The server checks it for every token"
_TIME: Final = f"It is a time, and a condition is compared with a text. {_CHECKED}"
_FIXED: Final[Mapping[str, str]] = {
    "iss": "The trusted issuer of the rule says whose tokens match",
    "aud": f"{_CHECKED}: it is the audience of the trusted issuer",
    "exp": _TIME,
    "iat": _TIME,
    "nbf": _TIME,
    "jti": "It differs in every token",
    "cnf": "A token with it is refused",
}
"""Claims that cannot be a condition, and why."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What every value of a claim looks like."""

    pattern: re.Pattern[str]
    meaning: str
    """What the value is, with an example."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _shape(pattern: str, meaning: str) -> Shape:
    return Shape(re.compile(pattern, re.ASCII), meaning)


# Of git-check-ref-format: what no name of a branch or tag contains.
_REF = r"[^\x00-\x20\x7f~^:?*\[\\]+"
_FULL_REF: Final = _shape(f"refs/{_REF}", "the full name of a branch or tag, such as refs/heads/main")
_NUMBER: Final = _shape("[0-9]+", "a number, such as 74")
_FLAG: Final = _shape("true|false", "true or false")

SHAPES: Final[Mapping[str, Mapping[str, Shape]]] = {
    "kubernetes": {
        # DNS labels and subdomains (RFC 1123): the API server accepts no other names.
        NAMESPACE: _shape("[a-z0-9-]+", "the name of a namespace, such as prod"),
        SERVICE_ACCOUNT: _shape("[a-z0-9.-]+", "the name of a service account, such as agent"),
        "sub": _shape(
            "system:serviceaccount:[a-z0-9-]+:[a-z0-9.-]+",
            "system:serviceaccount:NAMESPACE:NAME, such as system:serviceaccount:prod:agent",
        ),
    },
    "github": {
        "ref": _FULL_REF,
        "ref_protected": _FLAG,
        **dict.fromkeys(("actor_id", "enterprise_id", "repository_id", "repository_owner_id", "run_id"), _NUMBER),
    },
    "gitlab": {
        "ref_path": _FULL_REF,
        "ref_protected": _FLAG,
        "environment_protected": _FLAG,
        "ref": _shape(_REF, "the name of a branch or tag, such as main"),
        **dict.fromkeys(("job_id", "namespace_id", "pipeline_id", "project_id", "user_id"), _NUMBER),
    },
    # SPIFFE-ID 2.2: no segment of the path is empty.
    "spiffe": {"sub": _shape("spiffe://[^/]+(/[^/]+)+", "a SPIFFE ID, such as spiffe://example.org/ns/prod/sa/agent")},
}
"""Of the claims whose shape the platform guarantees, by kind and claim."""

NOT_TEXT: Final[Mapping[str, Mapping[str, str]]] = {
    "kubernetes": {
        "kubernetes.io": "an object",
        "/kubernetes.io/node": "an object",
        "/kubernetes.io/pod": "an object",
        "/kubernetes.io/serviceaccount": "an object",
        "/kubernetes.io/warnafter": "a number",
    },
    "gitlab": {"groups_direct": "a list", "runner_id": "a number", "user_identities": "a list"},
}
"""Claims that are not texts, and what they are, by kind."""

KNOWN: Final[Mapping[str, Sequence[str]]] = {
    "kubernetes": (
        *("sub", NAMESPACE, SERVICE_ACCOUNT, SERVICE_ACCOUNT_UID),
        *(f"/kubernetes.io/{owner}/{member}" for owner in ("pod", "node", "secret") for member in ("name", "uid")),
    ),
    "github": _names(
        "sub repository_id environment ref job_workflow_ref event_name actor actor_id base_ref check_run_id enterprise "
        "enterprise_id head_ref job_workflow_sha ref_protected ref_type repository repository_owner "
        "repository_owner_id repository_visibility run_attempt run_id run_number runner_environment sha workflow "
        "workflow_ref workflow_sha"
    ),
    "gitlab": _names(
        "sub project_id ref_protected environment ci_config_ref_uri ci_config_sha deployment_tier environment_action "
        "environment_protected job_id job_namespace_id job_namespace_path job_project_id job_project_path job_source "
        "namespace_id namespace_path pipeline_id pipeline_source project_path project_visibility ref ref_path "
        "ref_type runner_environment sha target_audience user_access_level user_email user_id user_login"
    ),
    "spiffe": ("sub",),
}
"""The texts that tokens of a kind carry, the most important first.

Platforms add claims, so others may exist. The kind `oidc` is not one platform.
"""

_PATTERN: Final = re.compile(r"[*?\[]")
"""What a value that was meant as a pattern contains."""

_SIMILAR: Final = 0.7
"""The ratio from which two names are similar (difflib)."""

_PROPERTY: Final = "repo_property_"
"""How GitHub's claims for the custom properties of a repository begin."""


def check_can_match(kind: Kind, conditions: Mapping[str, str]) -> None:
    """Check that a token of a platform can have these claims. `conditions` are in their normal form.

    Raises:
        InvalidRule: a condition can never hold. The message names the claim and what to write.
    """
    for name, value in conditions.items():
        if (why := _FIXED.get(claim_path(name)[0])) is not None:
            raise InvalidRule(f"{name} cannot be a condition. {why}. Leave it out.")
        for part, text in (("name of a claim", name), (f"value of {name}", value)):
            if text != text.strip():
                raise InvalidRule(f"The {part} begins or ends with a space: {as_word(text)}. Write it without.")
        if (what := NOT_TEXT.get(kind.name, {}).get(name)) is not None:
            raise InvalidRule(
                f"{name} is {what} in tokens of the kind {kind.name}, and a condition is compared with a text."
                f" The claims to use: authserver issuer claims {kind.name}"
            )
        shape = SHAPES.get(kind.name, {}).get(name)
        if shape is not None and not shape.pattern.fullmatch(value):
            no_pattern = " Values are compared exactly; there are no patterns." if _PATTERN.search(value) else ""
            raise InvalidRule(
                f"{name}={as_word(value)} can never match: in tokens of the kind {kind.name}, it is {shape.meaning}."
                f"{no_pattern} The claims to use: authserver issuer claims {kind.name}"
            )


def doubtful_conditions(kind: Kind, conditions: Mapping[str, str]) -> list[str]:
    """Return warnings about conditions that probably never hold. `conditions` are in their normal form."""
    warnings = []
    for name, value in conditions.items():
        if "*" in value:
            instead = ", or require repository_id with environment" if kind.name == "github" else ""
            warnings.append(
                f"{name} must be exactly {as_word(value)}: the * stands for itself, because there are no patterns."
                f" Add a rule for each value{instead}."
            )
        if kind.name == "gitlab" and name == "sub" and not value.startswith("project_path:"):
            warnings.append(
                f"sub is {as_word(value)}, and GitLab's begin with project_path:, such as"
                " project_path:acme/ops:ref_type:branch:ref:main"
            )
        known = KNOWN.get(kind.name)
        if known is not None and name not in known and not name.startswith(_PROPERTY):
            warnings.append(
                f"Tokens of the kind {kind.name} are not known to have the claim {name}.{_similar(name, known)}"
                f" The claims to use: authserver issuer claims {kind.name}"
            )
    return warnings


def _similar(name: str, known: Sequence[str]) -> str:
    """Return a question for the claim that was probably meant: one whose last member has a similar name."""
    if (pointer := f"/{name}") in known:
        return f" Did you mean {pointer}?"
    by_member = {claim_path(one)[-1]: one for one in reversed(known)}
    close = get_close_matches(claim_path(name)[-1], by_member, 1, _SIMILAR)
    return f" Did you mean {by_member[close[0]]}?" if close else ""
