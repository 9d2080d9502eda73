"""The command group `client trust`: which platform tokens authenticate a client."""

import json
from typing import Any

import pytest
from support.clock import FakeClock
from support.platforms import PLATFORMS, Platform, github, gitlab, kubernetes, oidc
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
@pytest.mark.parametrize("kind", PLATFORMS)
def test_rules_are_added_listed_shown_and_removed(shell: Shell, client_id: str, kind: str) -> None:
    platform = PLATFORMS[kind](FakeClock())
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
    for wrong in ([], ["--claim", "sub"], claims("sub=a", "sub=b"), claims("sub=...")):
        shell.refusal(*command, *wrong, code=2)
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
    other = shell.json(*WORKLOAD)["client_id"]
    for command, reason in (
        (["add", "agent_no", "--issuer", "login", "--claim", "sub=a"], "There is no client agent_no"),
        (["add", client_id, "--issuer", "nobody", "--claim", "sub=a"], "There is no trusted issuer nobody"),
        (
            ["add", other, "--issuer", "login", "--claim", "sub=a"],
            f"The rule {rule} of {client_id} has the same claims",
        ),
        (["list", "agent_no"], "There is no client agent_no"),
        (["remove", client_id, "rule_no"], "The client has no rule rule_no"),
        (["remove", other, rule], f"The client has no rule {rule}"),
    ):
        assert reason in shell.refusal("client", "trust", *command)
    assert [one["rule_id"] for one in shell.json("client", "trust", "list", client_id)] == [rule]


PULL_REQUEST = "Every pull request of the repository has a sub that ends in :pull_request"
RECYCLED_NAMES = "Names of owners and repositories can be taken over"
RECYCLED_PATHS = "Paths of groups and projects can be taken over"
RECREATED = "A service account that is deleted and created again"


@pytest.mark.parametrize(
    ("make", "conditions", "warnings"),
    [
        (github, ["sub=repo:acme/ops:ref:refs/heads/main"], [RECYCLED_NAMES]),
        (github, ["sub=repo:acme/ops:pull_request"], [PULL_REQUEST, RECYCLED_NAMES]),
        (github, ["sub=repo:acme/ops:pull_request", "repository_id=74"], [PULL_REQUEST]),
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


def test_a_rule_at_an_issuer_with_a_default_audience_causes_a_warning(shell: Shell, client_id: str) -> None:
    platform = github(FakeClock())
    add_issuer(shell, platform, "--audience", "https://github.com/acme")
    added = shell.run("client", "trust", "add", client_id, "--issuer", platform.name, *rule_of(platform))
    assert (
        "Warning: The platform issues tokens for the audience https://github.com/acme to use elsewhere" in added.stderr
    )
