"""The command group `client trust`: which platform tokens authenticate a client."""

import json
from typing import Any

import pytest
from support.clock import FakeClock
from support.platforms import Platform, github, gitlab, kubernetes, oidc
from support.shell import CREATE, Shell

WORKLOAD = [*CREATE, "--auth-method", "workload_identity"]
UID = "/kubernetes.io/serviceaccount/uid=0e6b1a52-5c1f-4a57-9d3e-2f8f5b7c9a10"


def add_issuer(shell: Shell, platform: Platform, *options: str) -> None:
    file = shell.folder / "jwks.json"
    file.write_bytes(platform.jwks())
    command = ("issuer", "add", platform.name, "--issuer", platform.issuer, "--kind", platform.kind)
    shell.text(*command, "--jwks-file", str(file), *options)


def claims(*conditions: str) -> list[str]:
    """Return the options for these claims."""
    return [part for condition in conditions for part in ("--claim", condition)]


def rule_of(platform: Platform) -> list[str]:
    return claims(*(f"{name}={value}" for name, value in platform.conditions.items()))


@pytest.fixture
def client_id(shell: Shell) -> str:
    created: dict[str, Any] = shell.json(*WORKLOAD)
    assert created["token_endpoint_auth_method"] == "workload_identity"
    assert "client_secret" not in created
    return str(created["client_id"])


@pytest.mark.both_databases
def test_rules_are_added_listed_shown_and_removed(shell: Shell, client_id: str) -> None:
    platform = kubernetes(FakeClock())
    add_issuer(shell, platform)
    added = shell.json("client", "trust", "add", client_id, "--issuer", platform.name, *rule_of(platform))
    assert (added["client_id"], added["issuer"]) == (client_id, platform.name)
    assert added["claims"] == platform.conditions
    [listed] = shell.json("client", "trust", "list", client_id)
    assert (listed["rule_id"], listed["claims"]) == (added["rule_id"], platform.conditions)
    assert listed["last_used_at"] is None
    assert shell.json("client", "show", client_id)["trust_rules"] == [listed]
    assert f"trusts {platform.name} where " in shell.text("client", "show", client_id)
    assert shell.json("client", "trust", "remove", client_id, added["rule_id"]) == []
    assert "No trust rules. Add one with" in shell.text("client", "show", client_id)
    actions = [(event["action"], event["object"]) for event in shell.json("audit")]
    assert actions[-2:] == [("client.trust.add", client_id), ("client.trust.remove", client_id)]


def test_a_value_may_contain_an_equals_sign(shell: Shell, client_id: str) -> None:
    add_issuer(shell, oidc(FakeClock()))
    added = shell.json("client", "trust", "add", client_id, "--issuer", "login", "--claim", "sub=CN=agent,O=acme=")
    assert added["claims"] == {"sub": "CN=agent,O=acme="}


def test_a_new_client_is_told_how_to_add_a_rule(shell: Shell) -> None:
    created = shell.run(*WORKLOAD, "--output", "json")
    client_id = json.loads(created.stdout)["client_id"]
    assert f"authserver client trust add {client_id} --issuer NAME --claim NAME=VALUE" in created.stderr
    assert "client trust add" not in shell.run(*CREATE).stderr
    assert "trust_rules" not in shell.json("client", "show", shell.json(*CREATE)["client_id"])


@pytest.mark.parametrize(
    ("make", "conditions"),
    [
        (kubernetes, ["/kubernetes.io/namespace=prod"]),
        (kubernetes, ["/kubernetes.io/serviceaccount/name=agent", UID]),
        (github, ["repository_id=74"]),
        (github, ["ref=refs/heads/main", "repository_owner_id=72"]),
        (gitlab, ["project_id=20", "ref=main"]),
    ],
)
def test_claims_that_identify_no_workload_are_refused(
    shell: Shell, client_id: str, make: Any, conditions: list[str]
) -> None:
    platform = make(FakeClock())
    add_issuer(shell, platform)
    command = ("client", "trust", "add", client_id, "--issuer", platform.name)
    assert "These claims do not identify a workload. Add sub" in shell.refusal(*command, *claims(*conditions))
    assert shell.json("client", "trust", "list", client_id) == []
    assert shell.json(*command, *rule_of(platform))["rule_id"]


def test_wrong_claims_are_usage_errors(shell: Shell, client_id: str) -> None:
    add_issuer(shell, oidc(FakeClock()))
    command = ("client", "trust", "add", client_id, "--issuer", "login")
    for wrong, told in (
        ([], "Missing option '--claim'"),
        (claims("sub=a", "ref"), "the claim ref has no value: write ref=VALUE"),
        (claims("sub=a", "sub=b"), "the claim sub is given twice"),
        (claims("sub=..."), "replace the dots in sub with the whole value"),
    ):
        assert told in shell.refusal(*command, *wrong, code=2)
    assert shell.json(*command, "--claim", "sub=a")["claims"] == {"sub": "a"}


def test_a_client_with_a_secret_has_no_rules(shell: Shell) -> None:
    add_issuer(shell, oidc(FakeClock()))
    client_id = shell.json(*CREATE)["client_id"]
    refusal = shell.refusal("client", "trust", "add", client_id, "--issuer", "login", "--claim", "sub=a")
    assert "a client has one method" in refusal
    assert "--auth-method workload_identity" in refusal


def test_unknown_names_are_refused(shell: Shell, client_id: str) -> None:
    add_issuer(shell, oidc(FakeClock()))
    rule = shell.json("client", "trust", "add", client_id, "--issuer", "login", "--claim", "sub=a")["rule_id"]
    other, remove = shell.json(*WORKLOAD)["client_id"], "authserver client trust remove"
    for command, reason in (
        (["add", "agent_no", "--issuer", "login", "--claim", "sub=a"], "There is no client agent_no"),
        (["add", client_id, "--issuer", "nobody", "--claim", "sub=a"], "There is no trusted issuer nobody"),
        (
            ["add", other, "--issuer", "login", "--claim", "sub=a"],
            f"The rule {rule} of {client_id} has the same claims. To remove it: {remove} {client_id} {rule}",
        ),
        (["list", "agent_no"], "There is no client agent_no"),
        (["remove", client_id, "rule_no"], "The client has no rule rule_no"),
        (["remove", other, rule], f"The client has no rule {rule}"),
    ):
        assert reason in shell.refusal("client", "trust", *command)
    assert [one["rule_id"] for one in shell.json("client", "trust", "list", client_id)] == [rule]


PULL_REQUEST = "Every pull request of the repository has a sub that ends in :pull_request"
WITHOUT_IDS = "On github.com, repositories that were created, renamed or transferred after 15 July 2026"
RECYCLED_NAMES = "Names of owners and repositories can be taken over"
RECYCLED_PATHS = "Paths of groups and projects can be taken over"
RECREATED = "A service account that is deleted and created again"


@pytest.mark.parametrize(
    ("make", "conditions", "warnings"),
    [
        (github, ["sub=repo:acme/ops:ref:refs/heads/main"], [WITHOUT_IDS, RECYCLED_NAMES]),
        (github, ["sub=repo:acme/ops:pull_request"], [PULL_REQUEST, WITHOUT_IDS, RECYCLED_NAMES]),
        (github, ["sub=repo:acme/ops:pull_request", "repository_id=74"], [PULL_REQUEST, WITHOUT_IDS]),
        (github, ["sub=repo:acme@72/ops@74:pull_request"], [PULL_REQUEST]),
        (github, ["sub=repository_id:74:ref:refs/heads/main"], []),
        (github, ["sub=repository:acme/ops:environment:production"], [RECYCLED_NAMES]),
        (github, ["sub=repo:acme@72/ops@74:ref:refs/heads/main"], []),
        (github, ["repository_id=74", "environment=production"], []),
        (kubernetes, ["sub=system:serviceaccount:prod:agent"], [RECREATED]),
        (kubernetes, ["sub=system:serviceaccount:prod:agent", UID], []),
        (gitlab, ["sub=project_path:acme/ops:ref_type:branch:ref:main"], [RECYCLED_PATHS]),
        (gitlab, ["sub=project_path:acme/ops:ref_type:branch:ref:main", "project_id=20"], []),
        (oidc, ["sub=agent"], []),
    ],
)
def test_a_rule_that_others_could_match_causes_a_warning(
    shell: Shell, client_id: str, make: Any, conditions: list[str], warnings: list[str]
) -> None:
    platform = make(FakeClock())
    add_issuer(shell, platform)
    added = shell.run("client", "trust", "add", client_id, "--issuer", platform.name, *claims(*conditions))
    assert added.exit_code == 0, added.output
    lines = [line for line in added.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(lines) == len(warnings)
    assert all(
        line.removeprefix("Warning: ").startswith(warning) for line, warning in zip(lines, warnings, strict=True)
    )


UNKNOWN = "Tokens of the kind github are not known to have the claim repo_id. Did you mean repository_id? The claims to"


def test_a_rule_that_probably_matches_no_token_causes_a_warning(shell: Shell, client_id: str) -> None:
    add_issuer(shell, github(FakeClock()))
    conditions = claims("repository_id=74", "environment=prod *", "repo_id=74")
    added = shell.run("client", "trust", "add", client_id, "--issuer", "github", *conditions)
    assert added.exit_code == 0
    pattern, unknown, *others = added.stderr.splitlines()
    assert pattern.startswith('Warning: environment must be exactly "prod *": the * stands for itself')
    assert unknown.startswith(f"Warning: {UNKNOWN}")
    assert not [line for line in others if line.startswith("Warning: ")]
    for command in (("trust", "list"), ("show",)):
        assert 'environment="prod *" repo_id=74' in shell.text("client", *command, client_id)


def test_a_rule_that_can_match_no_token_is_refused(shell: Shell, client_id: str) -> None:
    add_issuer(shell, github(FakeClock()))
    command = ("client", "trust", "add", client_id, "--issuer", "github")
    told = shell.refusal(*command, *claims("repository_id=74", "ref=main"))
    assert "ref=main can never match: in tokens of the kind github, it is the full name of a branch or tag" in told
    assert shell.json("client", "trust", "list", client_id) == []
    assert shell.json(*command, *claims("repository_id=74", "ref=refs/heads/main"))["rule_id"]


def test_a_rule_that_can_match_together_with_that_of_another_client_causes_a_warning(
    shell: Shell, client_id: str
) -> None:
    add_issuer(shell, kubernetes(FakeClock()))
    agent, other = "sub=system:serviceaccount:prod:agent", shell.json(*WORKLOAD)["client_id"]

    def add(client: str, *conditions: str) -> tuple[str, list[str]]:
        command = ("client", "trust", "add", client, "--issuer", "cluster", *claims(*conditions), "--output", "json")
        added = shell.run(*command)
        assert added.exit_code == 0, added.output
        rivals = [line for line in added.stderr.splitlines() if "that also has the claims of the rule" in line]
        return json.loads(added.stdout)["rule_id"], rivals

    rule_id, alone = add(client_id, agent, UID)
    assert alone == []
    _, [warning] = add(other, agent)
    assert f"the rule {rule_id} of {client_id} is refused" in warning
    assert warning.endswith(f"To remove that rule: authserver client trust remove {client_id} {rule_id}")
    shell.text("client", "trust", "remove", client_id, rule_id)
    # Another account, another uid, and a second rule of the same client.
    assert add(client_id, "sub=system:serviceaccount:prod:reporter")[1] == []
    assert add(other, agent, UID)[1] == []
    assert len(add(client_id, agent, f"{UID[:-1]}1")[1]) == 1


def test_a_rule_at_an_issuer_with_a_default_audience_causes_a_warning(shell: Shell, client_id: str) -> None:
    platform = github(FakeClock())
    add_issuer(shell, platform, "--audience", "https://github.com/acme")
    added = shell.run("client", "trust", "add", client_id, "--issuer", platform.name, *rule_of(platform))
    assert (
        "Warning: The platform issues tokens for the audience https://github.com/acme to use elsewhere" in added.stderr
    )
