"""Conditions of trust rules that no token can have, or that it probably does not have."""

import pytest
from support.clock import FakeClock
from support.platforms import PLATFORMS

from gatehouse.authserver.workloads.claim_shapes import KNOWN, NOT_TEXT, SHAPES, check_can_match, doubtful_conditions
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.presets import PRESETS
from gatehouse.authserver.workloads.rules import InvalidRule, claim_path, find_claim

NAMESPACE, ACCOUNT = "/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name"
POD = "system:serviceaccount:prod:agent"


def refusal(kind: str, **conditions: str) -> str:
    with pytest.raises(InvalidRule) as refused:
        check_can_match(KINDS[kind], conditions)
    return str(refused.value)


@pytest.mark.parametrize("kind", PLATFORMS)
def test_every_text_of_a_token_can_be_a_condition_without_doubt(kind: str) -> None:
    platform = PLATFORMS[kind](FakeClock())
    names = KNOWN.get(kind) or platform.workload
    texts = {name: find_claim(platform.workload, name) for name in names}
    conditions = {name: text for name, text in texts.items() if text and name != "iss"}
    assert conditions.keys() >= platform.conditions.keys()
    check_can_match(KINDS[kind], conditions)
    assert doubtful_conditions(KINDS[kind], conditions) == []


@pytest.mark.parametrize("kind", PLATFORMS)
def test_the_claims_that_are_recommended_can_match(kind: str) -> None:
    examples = {claim.claim: claim.example for claim in PRESETS[kind].claims}
    check_can_match(KINDS[kind], examples)
    assert doubtful_conditions(KINDS[kind], examples) == []


def test_the_tables_do_not_contradict_each_other() -> None:
    for kind, known in KNOWN.items():
        assert {*SHAPES.get(kind, ())} <= {*known}
        assert not {*NOT_TEXT.get(kind, ())} & {*known}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("iss", "The trusted issuer of the rule says"),
        ("aud", "The server checks it for every token"),
        ("/aud/0", "The server checks it for every token"),
        ("exp", "It is a time"),
        ("iat", "It is a time"),
        ("nbf", "It is a time"),
        ("jti", "It differs in every token"),
        ("/cnf/jkt", "A token with it is refused"),
    ],
)
def test_a_claim_that_the_server_checks_itself_is_no_condition(name: str, why: str) -> None:
    assert refusal("oidc", **{name: "x"}).startswith(f"{name} cannot be a condition. {why}")


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ({"sub": "agent "}, 'The value of sub begins or ends with a space: "agent ". Write it without.'),
        ({"sub": " agent"}, 'The value of sub begins or ends with a space: " agent". Write it without.'),
        ({"sub": " "}, 'The value of sub begins or ends with a space: " ". Write it without.'),
        ({"sub ": "agent"}, 'The name of a claim begins or ends with a space: "sub ". Write it without.'),
    ],
)
def test_a_space_at_the_beginning_or_end_is_refused(conditions: dict[str, str], told: str) -> None:
    check_can_match(KINDS["oidc"], {"sub": "the agent"})
    assert refusal("oidc", **conditions) == told


@pytest.mark.parametrize(
    ("kind", "name", "right", "wrong"),
    [
        ("kubernetes", "sub", POD, ["agent", "prod:agent", f"{POD}:x", f"x{POD}", "system:serviceaccount::agent"]),
        ("kubernetes", "sub", POD, ["system:serviceaccount:prod:*", "system:serviceaccount:Prod:agent"]),
        ("kubernetes", NAMESPACE, "prod-1", ["prod*", "Prod", "a.b", "prod/agent"]),
        ("kubernetes", ACCOUNT, "agent.v1", ["agent*", "Agent", "prod:agent", "prod/agent"]),
        (
            "github",
            "ref",
            "refs/heads/feature/\u00e4",
            ["main", "heads/main", "refs/", "refs/heads/*", "refs/heads/a b"],
        ),
        ("github", "ref", "refs/pull/7/merge", ["refs/pull/[0-9]/merge", "refs/heads/a:b", "refs/heads/a?"]),
        ("github", "repository_id", "74", ["acme/ops", "74a", "-1", "7.4", "\u0667", "R_kgDOA"]),
        ("github", "repository_owner_id", "72", ["acme"]),
        ("gitlab", "project_id", "20", ["acme/ops"]),
        ("gitlab", "namespace_id", "72", ["acme"]),
        ("gitlab", "ref", "main", ["release/*", "a b"]),
        ("gitlab", "ref_path", "refs/heads/main", ["main"]),
        ("gitlab", "ref_protected", "true", ["True", "yes", "1"]),
        ("gitlab", "environment_protected", "false", ["False"]),
        ("github", "ref_protected", "false", ["False"]),
        ("spiffe", "sub", "spiffe://example.org/agent", ["spiffe://example.org/", "spiffe://example.org/agent/"]),
        ("spiffe", "sub", "spiffe://example.org/ns/prod/sa/agent", ["spiffe://example.org//agent"]),
    ],
)
def test_a_value_that_the_platform_never_gives_is_refused(kind: str, name: str, right: str, wrong: list[str]) -> None:
    check_can_match(KINDS[kind], {name: right})
    for value in wrong:
        told = refusal(kind, **{name: value})
        assert "can never match: in tokens of the kind" in told
        assert SHAPES[kind][name].meaning in told
        assert value in told
        assert ("there are no patterns" in told) is any(character in value for character in "*?[")


@pytest.mark.parametrize("value", ["main", "acme/ops", "prod*", "Agent"])
def test_a_kind_without_shapes_accepts_every_value(value: str) -> None:
    for name in ("sub", "ref", "repository_id", NAMESPACE):
        check_can_match(KINDS["oidc"], {name: value})


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        ("gitlab", "runner_id", "a number"),
        ("gitlab", "groups_direct", "a list"),
        ("kubernetes", "kubernetes.io", "an object"),
        ("kubernetes", "/kubernetes.io/serviceaccount", "an object"),
    ],
)
def test_a_claim_that_is_no_text_is_refused(kind: str, name: str, what: str) -> None:
    workload = PLATFORMS[kind](FakeClock()).workload
    assert workload[claim_path(name)[0]] is not None
    assert find_claim(workload, name) is None
    assert refusal(kind, **{name: "1"}).startswith(f"{name} is {what} in tokens of the kind {kind}")
    check_can_match(KINDS["oidc"], {name: "1"})


@pytest.mark.parametrize(
    ("kind", "name", "question"),
    [
        ("kubernetes", "uuid", " Did you mean /kubernetes.io/serviceaccount/uid?"),
        ("kubernetes", "namespace", f" Did you mean {NAMESPACE}?"),
        ("kubernetes", "kubernetes.io/namespace", f" Did you mean {NAMESPACE}?"),
        ("kubernetes", "/kubernetes.io/serviceaccount/uuid", " Did you mean /kubernetes.io/serviceaccount/uid?"),
        ("kubernetes", "email", ""),
        ("github", "repo_id", " Did you mean repository_id?"),
        ("github", "project_id", ""),
        ("github", "team", ""),
        ("gitlab", "project-id", " Did you mean project_id?"),
        ("spiffe", "kubernetes.io", ""),
    ],
)
def test_a_claim_that_tokens_are_not_known_to_have_causes_a_warning(kind: str, name: str, question: str) -> None:
    [warning] = doubtful_conditions(KINDS[kind], {name: "x"})
    assert warning == (
        f"Tokens of the kind {kind} are not known to have the claim {name}.{question}"
        f" The claims to use: authserver issuer claims {kind}"
    )
    assert doubtful_conditions(KINDS["oidc"], {name: "x"}) == []


def test_a_custom_property_of_a_repository_may_be_required() -> None:
    assert doubtful_conditions(KINDS["github"], {"repo_property_team": "ops"}) == []


@pytest.mark.parametrize(("kind", "instead"), [("github", ", or require repository_id with environment"), ("oidc", "")])
def test_a_star_in_a_value_causes_a_warning(kind: str, instead: str) -> None:
    conditions = {"sub": "repo:acme/ops:*"}
    check_can_match(KINDS[kind], conditions)
    [warning] = doubtful_conditions(KINDS[kind], conditions)
    assert warning.startswith("sub must be exactly repo:acme/ops:*: the * stands for itself, because there are no")
    assert warning.endswith(f" Add a rule for each value{instead}.")
    assert doubtful_conditions(KINDS[kind], {"sub": "repo:acme/ops:ref:refs/heads/main"}) == []


def test_a_subject_of_gitlab_without_its_project_causes_a_warning() -> None:
    [warning] = doubtful_conditions(KINDS["gitlab"], {"sub": "acme/ops"})
    assert warning.startswith("sub is acme/ops, and GitLab's begin with project_path:")
    assert doubtful_conditions(KINDS["gitlab"], {"sub": "project_path:acme/ops:ref_type:branch:ref:main"}) == []
