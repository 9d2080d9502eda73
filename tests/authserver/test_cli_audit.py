"""The command `audit`: its filters, and how an admin finds the remediation of a refused request."""

import shlex
import subprocess

import pytest
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer, token_form
from support.clock import FakeClock
from support.platforms import oidc
from support.shell import CREATE, Shell

from gatehouse.authserver.resources.registration import ScopeDeclaration, add_resource
from gatehouse.shared.service.audit.events import AUTHSERVER_ACTIONS


def trust_a_platform_for_a_while(shell: Shell) -> None:
    platform, keys = oidc(FakeClock()), shell.folder / "keys.json"
    keys.write_bytes(platform.jwks())
    issuer = ("--kind", "oidc", "--issuer", platform.issuer, "--jwks-file", str(keys))
    shell.text("issuer", "add", "login", *issuer)
    shell.text("issuer", "update", "login", "--jwks-file", str(keys))
    workload = shell.json(*CREATE, "--auth-method", "workload_identity")["client_id"]
    rule = shell.json("client", "trust", "add", workload, "--issuer", "login", "--claim", "sub=agent")["rule_id"]
    shell.text("client", "trust", "remove", workload, rule)
    shell.text("client", "delete", workload, "--yes")
    for command in (("disable", "login"), ("enable", "login"), ("remove", "login", "--yes")):
        shell.text("issuer", *command)


@pytest.mark.both_databases
def test_the_audit_log_is_filtered_by_action_and_time(shell: Shell) -> None:
    shell.json(*CREATE)
    everything = shell.json("audit")
    created = [event for event in everything if event["action"] == "client.create"]
    assert 0 < len(created) < len(everything)
    assert shell.json("audit", "--action", "client.create") == created
    for begin in ("1h", "2000-01-01T00:00:00Z"):
        assert shell.json("audit", "--since", begin) == everything
    assert shell.json("audit", "--since", "2100-01-01") == []
    assert "write 2026-01-31T12:00:00Z" in shell.refusal("audit", "--since", "yesterday", code=2)


@pytest.mark.parametrize(
    ("form", "reason", "remediation"),
    [
        pytest.param(
            {"scope": "org:read"},
            f"not granted at {RESOURCE}: org:read",
            f"authserver client grant add {{client_id}} --resource {RESOURCE} --scope org:read",
            id="existing scope",
        ),
        pytest.param(
            {"scope": "org:raed"},
            f"{RESOURCE} has no scope org:raed; it has: env:read env:write org:read",
            "Ask for a scope that the resource has.",
            id="no such scope",
        ),
        pytest.param(
            {"scope": "env:read,org:read"},
            f"{RESOURCE} has no scope env:read,org:read; it has: env:read env:write org:read",
            "Ask for a scope that the resource has. Separate scopes by spaces.",
            id="commas",
        ),
        pytest.param(
            {"resource": OTHER_RESOURCE},
            f"no grant at {OTHER_RESOURCE}",
            f"authserver client grant add {{client_id}} --resource {OTHER_RESOURCE} --scope ...",
            id="existing resource",
        ),
        pytest.param(
            {"resource": "https://none.example.com/mcp"},
            "https://none.example.com/mcp is not registered",
            "authserver resource list",
            id="no such resource",
        ),
        pytest.param(
            {"resource": f"{RESOURCE}/"},
            f"{RESOURCE}/ is not registered; {RESOURCE} is",
            f"Name the resource as it is registered: {RESOURCE}",
            id="slash",
        ),
        pytest.param(
            {"resource": "https://mcp.example.com/MCP"},
            f"https://mcp.example.com/MCP is not registered; {RESOURCE} is",
            f"Name the resource as it is registered: {RESOURCE}",
            id="case",
        ),
    ],
)
def test_the_audit_log_shows_how_to_fix_a_refused_request(
    authserver: AuthServer, form: dict[str, str], reason: str, remediation: str
) -> None:
    """A grant is suggested only if the resource and the scope exist."""
    authserver.add_resource(OTHER_RESOURCE)
    client, secret = authserver.create_client()
    refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
    assert refused.json["request_id"] == refused.headers["X-Request-Id"]
    [event] = authserver.audit(request_id=refused.json["request_id"])
    assert event["reason"] == reason
    assert event["detail"]["remediation"] == remediation.format(client_id=client.client_id)
    assert event["object"] == form.get("resource")
    assert "grant add" not in refused.text


def test_a_refusal_does_not_reveal_what_is_registered(authserver: AuthServer) -> None:
    """Otherwise any client could discover the resources of others."""
    authserver.add_resource(OTHER_RESOURCE)
    client, secret = authserver.create_client()
    for forms in (
        [{"resource": OTHER_RESOURCE}, {"resource": "https://none.example.com/mcp"}, {"resource": f"{RESOURCE}/"}],
        [{"scope": "org:read"}, {"scope": "org:raed"}],
    ):
        answers = []
        for form in forms:
            refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
            answers.append((refused.status_code, refused.json["error"], refused.json["error_description"]))
        assert len(set(answers)) == 1
        assert answers[0][0] == 400


def test_a_narrowed_grant_is_recorded_with_scope_not_granted(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    for scope, scope_not_granted in (("env:read", None), ("env:read org:read nope", "nope org:read")):
        response = authserver.post_token(token_form(scope=scope), basic=(client.client_id, secret))
        [event] = authserver.audit(request_id=response.headers["X-Request-Id"])
        assert (event["outcome"], event["detail"]["scope"]) == ("allowed", "env:read")
        assert event["detail"].get("scope_not_granted") == scope_not_granted


@pytest.mark.threat("T-110")
@pytest.mark.parametrize(
    "form", [{"scope": "$(id)"}, {"resource": "https://mcp.example.com/$(id)';id"}], ids=["scope", "resource"]
)
def test_a_client_cannot_inject_into_the_admins_command(authserver: AuthServer, form: dict[str, str]) -> None:
    """CWE-78: the grammar of scopes and resources allows `$(...)`."""
    client, secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    with authserver.services.database.write() as session:
        for resource in (RESOURCE, form.get("resource", OTHER_RESOURCE)):
            scopes = [ScopeDeclaration("env:read"), ScopeDeclaration("$(id)")]
            add_resource(session, authserver.admin, resource, "hostile", scopes)
    refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
    [event] = authserver.audit(request_id=refused.json["request_id"])
    words = shlex.split(event["detail"]["remediation"])
    assert words[:5] == ["authserver", "client", "grant", "add", client.client_id]
    assert set(form.values()) <= set(words)
    echoed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {event['detail']['remediation']}"], capture_output=True, text=True, check=True
    )
    assert echoed.stdout.splitlines() == words


@pytest.mark.both_databases
def test_one_request_is_shown_in_full(shell: Shell, authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    refused = authserver.post_token(token_form(scope="org:read"), basic=(client.client_id, secret))
    shell.environment["AUTHSERVER_DATABASE_URL"] = authserver.settings.database_url
    shown = shell.text("audit", "--request", refused.json["request_id"])
    assert "remediation" in shown
    assert f"authserver client grant add {client.client_id}" in shown
    rows = [line.split()[0] for line in shown.splitlines()]
    assert len(rows) > 8
    assert len(rows) == len(set(rows))
    assert "detail" not in rows


def test_every_recorded_action_can_be_filtered(shell: Shell) -> None:
    trust_a_platform_for_a_while(shell)
    client_id = shell.json(*CREATE, "--claim", "workspace_id=wks_1")["client_id"]
    grant = (client_id, "--resource", RESOURCE, "--scope", "env:read")
    soft, key_id = ("--grace-period", "7d"), shell.json(*CREATE, "--generate-key", f"{shell.folder}/a.pem")["client_id"]
    old, old_key = shell.json("client", "secret", "list", client_id)[0], shell.json("client", "key", "list", key_id)[0]
    for command in (
        ("client", "secret", "rotate", client_id, *soft),
        ("client", "secret", "revoke", client_id, old["secret_id"], "--yes"),
        ("client", "key", "rotate", key_id, "--generate-key", f"{shell.folder}/b.pem", *soft),
        ("client", "key", "revoke", key_id, old_key["kid"], "--yes"),
        *(("client", "grant", "add", *grant), ("client", "grant", "remove", *grant)),
        *(("client", "update", client_id, "--ttl", "60"), ("client", "secret", "rotate", client_id, "--yes")),
        *(("client", "disable", client_id), ("client", "enable", client_id), ("client", "delete", client_id, "--yes")),
        ("resource", "add", RESOURCE, "--name", "tools", "--scope", "a"),
        ("token", "revoke", "--client", key_id),
        ("key", "rotate"),
        ("key", "revoke", shell.json("key", "list")[0]["kid"], "--yes"),
        ("sealing-key", "rotate", "--yes"),
        ("export", str(shell.folder / "moved")),
        ("restore", "accept", "--yes"),
        ("audit", "key", "rotate"),
    ):
        shell.text(*command)
    credential = shell.json("resource", "credential", "create", RESOURCE)["credential_id"]
    rotated = shell.json("resource", "credential", "rotate", credential)["credential_id"]
    shell.text("resource", "credential", "revoke", rotated, "--yes")
    shell.text("resource", "remove", RESOURCE, "--yes")
    recorded = {event["action"] for event in shell.json("audit")}
    shell.text("audit", "prune", "--older-than", "0s", "--yes")
    recorded |= {event["action"] for event in shell.json("audit")}
    others = {"http.request", "installation.import", "key.remove", "key.retire", "token.introspect", "token.issue"}
    assert recorded == set(AUTHSERVER_ACTIONS) - others
    for action in AUTHSERVER_ACTIONS:
        shell.text("audit", "--action", action)
    assert "The actions are: audit.prune, audit_key.rotate, client.create" in shell.refusal(
        "audit", "--action", "client.created"
    )


@pytest.mark.both_databases
def test_the_audit_log_shows_who_did_what(shell: Shell) -> None:
    first, second = (shell.json(*CREATE)["client_id"] for _ in range(2))
    events = shell.json("audit")
    assert [event["action"] for event in events[-3:]] == ["client.grant.add", "client.create", "client.grant.add"]
    assert [event["object"] for event in events[-4:]] == [first, first, second, second]
    assert all(event["actor"].startswith("admin:") for event in events)
    assert events[-1]["time"].endswith("Z")
    assert events[-1]["detail"] == {"resource": RESOURCE, "scope": ["env:read"]}
    assert shell.json("audit", "--limit", "1") == events[-1:]
    assert shell.json("audit", "--client", "agent_nobody") == []
    assert "(none)" in shell.text("audit", "--jti", "nothing")
    assert "client.create" in shell.text("audit")
