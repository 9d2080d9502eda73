"""The command group `issuer`: trusted issuers, their keys, and the claims to require of each kind."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from support.authserver import ISSUER
from support.certificates import Authority
from support.clock import FakeClock
from support.document_server import Answer, DocumentServer
from support.issuer_commands import add, adding, change, serve, write_jwks
from support.issuers import serving
from support.platforms import CLUSTER_ISSUER, GITHUB_ISSUER, PLATFORMS, Platform, github, kubernetes, oidc, spiffe
from support.shell import CREATE, Shell

from gatehouse.authserver.workloads.key_fetching import METADATA

POD_TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJhcGkifQ.c2lnbmF0dXJl"


@pytest.fixture
def cluster() -> Platform:
    return kubernetes(FakeClock(time.time()))


@pytest.mark.both_databases
def test_an_issuer_is_added_and_shown(shell: Shell) -> None:
    platform = github(FakeClock())
    added = add(shell, platform)
    assert (added["name"], added["issuer"], added["kind"]) == (platform.name, platform.issuer, "github")
    assert (added["audience"], added["disabled"], added["keys_from"]) == (ISSUER, False, "file")
    assert [key["kid"] for key in added["keys"]] == [platform.key.kid]
    assert added["one_time"]
    assert added["keys_problem"] is None
    shown = shell.json("issuer", "show", platform.name)
    assert {**shown, "keys_age": 0} == {**added, "keys_age": 0, "trust_rules": []}
    [listed] = shell.json("issuer", "list")
    assert {**listed, "keys_age": 0} == {**added, "keys_age": 0}
    [event] = shell.json("audit", "--action", "issuer.add")
    assert (event["object"], event["detail"]["issuer"]) == (platform.name, platform.issuer)
    assert event["detail"]["thumbprints"] == [key["thumbprint"] for key in added["keys"]]


def test_an_issuer_is_also_printed_for_people(shell: Shell, cluster: Platform) -> None:
    added = shell.run(*adding(shell, cluster))
    assert f"key {cluster.key.kid} for RS256, thumbprint " in added.stdout
    assert "keys_age                 0 s" in added.stdout or "keys_age                 1 s" in added.stdout
    assert "authserver issuer claims kubernetes" in added.stderr
    assert f"authserver client trust add CLIENT_ID --issuer {cluster.name} --claim NAME=VALUE" in added.stderr
    change(shell, fetched_at=None, jwks=None)
    assert "keys_age                 -" in shell.text("issuer", "show", cluster.name)


def test_every_option_is_stored(shell: Shell, cluster: Platform) -> None:
    options = ("--audience", "gatehouse", "--algorithms", "RS256 PS256", "--max-lifetime", "15m", "--one-time", "yes")
    added = add(shell, cluster, *options)
    assert (added["audience"], added["algorithms"]) == ("gatehouse", ["RS256", "PS256"])
    assert (added["max_lifetime"], added["one_time"]) == (900, True)
    shell.text("issuer", "remove", cluster.name, "--yes")
    again = add(shell, cluster, "--max-lifetime", "600", "--one-time", "no", "--token-endpoint-audience")
    assert (again["max_lifetime"], again["one_time"], again["token_endpoint_audience"]) == (600, False, True)


def test_keys_are_fetched_at_once_from_the_metadata(shell: Shell, documents: DocumentServer, cluster: Platform) -> None:
    serve(documents, cluster)
    added = shell.json("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")
    assert documents.paths() == [METADATA, "/keys"]
    assert (added["keys_from"], [key["kid"] for key in added["keys"]]) == ("discovery", [cluster.key.kid])


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        (METADATA, Answer(status=404), "status 404, not 200"),
        (METADATA, Answer(b'{"issuer": "https://evil.example"}'), "its issuer is https://evil.example"),
        ("/keys", Answer(b'{"keys": []}'), "the set holds no usable key"),
        ("/keys", Answer(b"<html>", headers={"Content-Type": "text/html"}), "/keys: its content type is text/html"),
    ],
    ids=["no metadata", "metadata of another issuer", "an empty set", "no JSON"],
)
def test_an_issuer_whose_keys_cannot_be_fetched_is_not_added(
    shell: Shell, documents: DocumentServer, cluster: Platform, path: str, answer: Answer, reason: str
) -> None:
    serve(documents, cluster)
    command = ("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")
    good, documents.answers = documents.answers, {**documents.answers, path: answer}
    assert reason in shell.refusal(*command)
    assert shell.json("issuer", "list") == []
    documents.answers = good
    assert shell.json(*command)["keys"]


def test_an_issuer_that_cannot_be_reached_can_be_added_without_a_fetch(
    shell: Shell, documents: DocumentServer, cluster: Platform
) -> None:
    serve(documents, cluster)
    command = ("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")
    del documents.answers[METADATA]
    with_file, with_address = shell.refusal(*command).splitlines()[-2:]
    words = f"authserver {' '.join(command)}"
    assert with_file == f"To give the keys yourself, without a fetch: {words} --jwks-file FILE"
    assert with_address.endswith(f"name the address of its keys: {words} --jwks-uri URL")
    documents.answers[METADATA] = Answer(json.dumps({"issuer": f"{documents.url}/"}).encode())
    assert shell.refusal(*command).endswith(f"they differ by the slash at the end. Add it: --issuer {documents.url}/\n")
    documents.answers["/keys"] = Answer(status=503)
    refusal = shell.refusal(*command, "--jwks-uri", f"{documents.url}/keys")
    assert "status 503, not 200" in refusal
    assert "--jwks-uri URL" not in refusal
    assert shell.json(*command, "--jwks-file", write_jwks(shell, cluster))["keys_from"] == "file"


def test_a_slash_at_the_end_of_the_issuer_is_noted(shell: Shell) -> None:
    platform = oidc(FakeClock())
    assert "Note:" not in shell.run(*adding(shell, platform)).stderr
    shell.text("issuer", "remove", platform.name, "--yes")
    command = adding(shell, platform)
    command[command.index(platform.issuer)] = f"{platform.issuer}/"
    added = shell.run(*command)
    assert added.exit_code == 0
    assert f"Note: the iss of its tokens must be exactly {platform.issuer}/, with the slash at the end." in added.stderr


def test_an_iss_that_another_trusted_issuer_has_is_noted(shell: Shell, cluster: Platform) -> None:
    assert "Note:" not in shell.run(*adding(shell, cluster)).stderr
    second, third = (shell.run(*adding(shell, kubernetes(cluster.clock, name=name))) for name in ("second", "third"))
    assert "Note: this is also the iss of cluster. If it is the same platform, use cluster.\n" in second.stderr
    told = "Note: this is also the iss of cluster, second. If it is the same platform, use cluster or second.\n"
    assert told in third.stderr


def test_a_private_cluster_is_asked_with_its_authority_and_a_token(shell: Shell, cluster: Platform) -> None:
    """The kubelet replaces the link `..data` when it renews a token, so the path is stored with its links."""
    authority = Authority(shell.folder)
    (shell.folder / "..2026").mkdir()
    (shell.folder / "..2026" / "token").write_text(f"{POD_TOKEN}\n", encoding="ascii")
    (shell.folder / "token").symlink_to(shell.folder / "..2026" / "token")
    with serving(authority.server_context()) as documents:
        documents.answers = {
            "/openid/v1/jwks": Answer(cluster.jwks(), headers={"Content-Type": "application/jwk-set+json"})
        }
        command = ["issuer", "add", "cluster", "--issuer", CLUSTER_ISSUER, "--kind", "kubernetes"]
        command += ["--jwks-uri", f"{documents.url}/openid/v1/jwks", "--bearer-token-file", str(shell.folder / "token")]
        assert "certificate" in shell.refusal(*command)
        added = shell.json(*command, "--ca-file", str(authority.file))
        assert documents.requests[-1].headers["authorization"] == f"Bearer {POD_TOKEN}"
    assert added["bearer_token_file"] == str(shell.folder / "token")
    assert added["ca_file"] == str(authority.file)
    assert added["keys_from"] == f"{documents.url}/openid/v1/jwks"
    [event] = shell.json("audit", "--action", "issuer.add")
    assert event["detail"]["bearer_token_file"] == str(shell.folder / "token")
    assert event["detail"]["ca_file"] == str(authority.file)
    assert POD_TOKEN not in "".join(shell.outputs)


def test_paths_are_stored_for_every_working_directory(
    shell: Shell, documents: DocumentServer, cluster: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(documents, cluster)
    monkeypatch.chdir(shell.folder)
    Path("token").write_text(POD_TOKEN, encoding="ascii")
    command = ("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")
    assert shell.json(*command, "--bearer-token-file", "token")["bearer_token_file"] == str(shell.folder / "token")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"--issuer": "http://cluster.example.com"}, "an https URL"),
        ({"--issuer": CLUSTER_ISSUER}, "Bind this one to its keys: --jwks-file FILE"),
        ({"--kind": "spiffe", "--issuer": "spiffe://example.org"}, "A trust domain has no metadata"),
        ({"--audience": ""}, "The audience has 1 to 512 visible characters"),
        ({"--algorithms": "HS256"}, "The algorithm HS256 is not supported"),
    ],
    ids=["plain http", "default issuer of clusters", "trust domain", "empty audience", "symmetric algorithm"],
)
def test_a_wrong_value_is_refused_before_anything_is_fetched(
    shell: Shell, documents: DocumentServer, cluster: Platform, changes: dict[str, str], reason: str
) -> None:
    serve(documents, cluster)
    options = {"--issuer": documents.url, "--kind": "kubernetes", **changes}
    command = ["issuer", "add", "cluster", *(part for option in options.items() for part in option)]
    assert reason in shell.refusal(*command)
    assert documents.requests == []
    assert (
        shell.json("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")["name"] == "cluster"
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--jwks-uri", "https://cluster.example.com/keys"], id="a file and an address"),
        pytest.param(["--ca-file", "/dev/stdin"], id="a file and an authority"),
        pytest.param(["--max-lifetime", "0"], id="no lifetime"),
        pytest.param(["--max-lifetime", "25h"], id="a lifetime over a day"),
        pytest.param(["--max-lifetime", "soon"], id="no number"),
        pytest.param(["--one-time", "maybe"], id="neither yes nor no"),
        pytest.param(["--kind", "aws"], id="unknown kind"),
    ],
)
def test_wrong_options_of_add_are_usage_errors(shell: Shell, cluster: Platform, options: list[str]) -> None:
    (shell.folder / "ca.pem").touch()
    options = [str(shell.folder / "ca.pem") if option == "/dev/stdin" else option for option in options]
    shell.refusal(*adding(shell, cluster), *options, code=2)
    assert add(shell, cluster, "--max-lifetime", "24h")["max_lifetime"] == 86400


def test_a_key_file_over_the_limit_is_refused(shell: Shell, cluster: Platform) -> None:
    command = adding(shell, cluster)
    Path(command[-1]).write_bytes(cluster.jwks() + b" " * 65536)
    assert "the key set is larger than 64 KiB" in shell.refusal(*command)
    Path(command[-1]).write_bytes(cluster.jwks())
    assert shell.json(*command)["keys"]


def test_two_issuers_with_one_key_are_refused(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    command = adding(shell, cluster)
    command[2] = "copy"
    assert "The trusted issuer cluster has a key of this key set" in shell.refusal(*command)
    assert [issuer["name"] for issuer in shell.json("issuer", "list")] == ["cluster"]


@pytest.mark.both_databases
def test_given_keys_are_replaced(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    old, new = cluster.key, cluster.rotate()
    changed = shell.json("issuer", "update", cluster.name, "--jwks-file", write_jwks(shell, cluster))
    assert {key["kid"] for key in changed["keys"]} == {old.kid, new.kid}
    [event] = shell.json("audit", "--action", "issuer.update")
    assert [len(event["detail"][name]) for name in ("old_thumbprints", "thumbprints")] == [1, 2]
    empty = shell.folder / "empty.json"
    empty.write_bytes(b'{"keys": []}')
    assert "the set holds no usable key" in shell.refusal("issuer", "update", cluster.name, "--jwks-file", str(empty))
    assert shell.json("issuer", "show", cluster.name)["keys"] == changed["keys"]


def test_the_limits_of_an_issuer_are_changed(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    changed = shell.run("issuer", "update", cluster.name, "--max-lifetime", "10m", "--output", "json")
    assert json.loads(changed.stdout)["max_lifetime"] == 600
    assert changed.stderr == "Takes effect at the token endpoint within one second.\n"
    changed = shell.run("issuer", "update", cluster.name, "--one-time", "yes", "--output", "json")
    assert json.loads(changed.stdout)["one_time"] is True
    assert "each may be accepted once more until it expires, which is at 20" in changed.stderr
    assert "at the latest, unless --max-lifetime was larger before." in changed.stderr
    changed = shell.run("issuer", "update", cluster.name, "--one-time", "auto", "--output", "json")
    assert json.loads(changed.stdout)["one_time"] is False
    assert "Tokens that were used before are accepted again until they expire." in changed.stderr
    shown = shell.json("issuer", "show", cluster.name)
    assert (shown["max_lifetime"], shown["one_time"]) == (600, False)


@pytest.mark.parametrize("options", [[], ["--max-lifetime", "25h"], ["--one-time", "maybe"]], ids=" ".join)
def test_wrong_options_of_update_are_usage_errors(shell: Shell, cluster: Platform, options: list[str]) -> None:
    add(shell, cluster)
    shell.refusal("issuer", "update", cluster.name, *options, code=2)
    assert shell.json("issuer", "update", cluster.name, "--max-lifetime", "24h")["max_lifetime"] == 86400


def test_fetched_keys_are_not_replaced_by_hand(shell: Shell, documents: DocumentServer, cluster: Platform) -> None:
    serve(documents, cluster)
    shell.json("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")
    refusal = shell.refusal("issuer", "update", "cluster", "--jwks-file", write_jwks(shell, cluster))
    assert "The keys of cluster are fetched" in refusal


@pytest.mark.both_databases
def test_issuers_are_disabled_and_enabled(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    disabled = shell.run("issuer", "disable", cluster.name, "--output", "json")
    assert json.loads(disabled.stdout)["disabled"] is True
    assert "Tokens that were already issued stay valid" in disabled.stderr
    enabled = shell.run("issuer", "enable", cluster.name, "--output", "json")
    assert json.loads(enabled.stdout)["disabled"] is False
    assert "within one second" in enabled.stderr
    actions = [event["action"] for event in shell.json("audit")]
    assert actions[-2:] == ["issuer.disable", "issuer.enable"]


@pytest.mark.both_databases
def test_an_issuer_is_removed_with_its_rules_after_a_confirmation(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    client_id = shell.json(*CREATE, "--auth-method", "workload_identity")["client_id"]
    claims = [part for item in cluster.conditions.items() for part in ("--claim", "=".join(item))]
    shell.json("client", "trust", "add", client_id, "--issuer", cluster.name, *claims)
    assert "Repeat the command with --yes" in shell.refusal("issuer", "remove", cluster.name)
    assert shell.json("client", "trust", "list", client_id)
    removed = shell.json("issuer", "remove", cluster.name, "--yes")
    assert removed == {"name": cluster.name, "removed": True, "rules": 1}
    assert shell.json("client", "trust", "list", client_id) == shell.json("issuer", "list") == []
    assert shell.json("client", "show", client_id)["trust_rules"] == []


def test_an_issuer_shows_whom_its_tokens_authenticate(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    assert "rule_id" not in shell.text("issuer", "show", cluster.name)
    client_id = shell.json(*CREATE, "--auth-method", "workload_identity")["client_id"]
    claims = [part for item in cluster.conditions.items() for part in ("--claim", "=".join(item))]
    added = shell.json("client", "trust", "add", client_id, "--issuer", cluster.name, *claims)
    rule = {"rule_id": added["rule_id"], "client_id": client_id, "claims": cluster.conditions}
    assert shell.json("issuer", "show", cluster.name)["trust_rules"] == [rule]
    assert client_id in shell.text("issuer", "show", cluster.name)


@pytest.mark.parametrize("command", ["show", "disable", "enable", "remove", "update"])
def test_an_unknown_issuer_is_refused(shell: Shell, cluster: Platform, command: str) -> None:
    options = {"remove": ["--yes"], "update": ["--jwks-file", write_jwks(shell, cluster)]}.get(command, [])
    assert "There is no trusted issuer nobody" in shell.refusal("issuer", command, "nobody", *options)
    add(shell, cluster)
    shell.text("issuer", command, cluster.name, *options)


@pytest.mark.parametrize(
    ("make", "audience"),
    [
        (kubernetes, "https://kubernetes.default.svc"),
        (kubernetes, CLUSTER_ISSUER),
        (github, "https://github.com/acme"),
        (github, "sts.amazonaws.com"),
        (spiffe, "spiffe://example.org"),
    ],
)
def test_an_audience_that_serves_another_purpose_causes_a_warning(shell: Shell, make: Any, audience: str) -> None:
    platform = make(FakeClock())
    warning = f"Warning: The platform issues tokens for the audience {audience} to use elsewhere."
    assert warning in shell.run(*adding(shell, platform), "--audience", audience).stderr
    shell.text("issuer", "remove", platform.name, "--yes")
    for options in ([], ["--audience", "https://github.com/acme/ops"], ["--audience", "gatehouse"]):
        assert "Warning" not in shell.run(*adding(shell, platform), *options).stderr
        shell.text("issuer", "remove", platform.name, "--yes")


@pytest.mark.parametrize("kind", PLATFORMS)
def test_the_claims_of_a_kind_are_shown_with_a_rule_that_is_accepted(shell: Shell, kind: str) -> None:
    platform = PLATFORMS[kind](FakeClock())
    shown = shell.json("issuer", "claims", kind)
    assert ISSUER in shown["request"]
    add(shell, platform)
    client_id = shell.json(*CREATE, "--auth-method", "workload_identity")["client_id"]
    command = shown["rule"].replace("CLIENT_ID", client_id).replace("NAME", platform.name).split()
    added = shell.run(*command[1:], "--output", "json")
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["claims"].keys() <= {claim["claim"] for claim in shown["claims"]}
    assert "Warning" not in added.stderr


def test_the_claims_of_a_kind_come_with_what_to_be_careful_about(shell: Shell) -> None:
    shown = shell.text("issuer", "claims", "github")
    assert "repository_id" in shown
    assert "A rule: authserver client trust add CLIENT_ID --issuer NAME --claim repository_id=74" in shown
    assert "Warning: Names of owners and repositories can be taken over" in shown
    assert ":pull_request" in shown
    assert "Warning: A service account that is deleted" in shell.text("issuer", "claims", "kubernetes")


def test_the_table_lists_what_an_operator_must_see(shell: Shell) -> None:
    assert shell.text("issuer", "list") == "(none)\n"
    platform = github(FakeClock())
    add(shell, platform)
    listed = shell.text("issuer", "list")
    assert GITHUB_ISSUER in listed
    assert "keys_problem" in listed
