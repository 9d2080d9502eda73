"""The command `token inspect` for a token of a platform: each check, the closest rules, and never the token."""

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import update
from support.authserver import ISSUER, RESOURCE, AuthServer
from support.clock import FakeClock
from support.platforms import CLUSTER_ISSUER, PLATFORMS, Platform, github, kubernetes, oidc, spiffe
from support.shell import CREATE, Shell
from support.workloads import DISCOVERY, FORMS, REFUSALS, WorkloadClient

from gatehouse.authserver.cli import main
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.models import SpentAssertionRow, TrustedIssuerRow
from gatehouse.authserver.workloads.authentication import PLATFORM_TOKEN
from gatehouse.authserver.workloads.inspection import PlatformInspection, looks_like_platform_token
from gatehouse.authserver.workloads.registry import TrustedIssuer, load_issuers, rules_of_issuer
from gatehouse.authserver.workloads.rules import Rule
from gatehouse.authserver.workloads.verifier import WorkloadVerifier
from gatehouse.shared.service.checks import Check

NAMES = ["header", "issuer", "signature", "typ", "sub", "aud", "time", "rule", "use", "client"]


class Inspected:
    """An installation that trusts a platform, with a client for its workload."""

    def __init__(self, shell: Shell, platform: Platform) -> None:
        self.shell, self.platform = shell, platform
        file = shell.folder / "jwks.json"
        file.write_bytes(platform.jwks())
        command = ("issuer", "add", platform.name, "--issuer", platform.issuer, "--kind", platform.kind)
        shell.text(*command, "--jwks-file", str(file))
        self.client_id = shell.json(*CREATE, "--auth-method", "workload_identity")["client_id"]
        self.rule_id = self.trust(platform.conditions)

    def trust(self, conditions: dict[str, str], client_id: str | None = None) -> str:
        claims = [part for item in conditions.items() for part in ("--claim", "=".join(item))]
        command = ("client", "trust", "add", client_id or self.client_id, "--issuer", self.platform.name)
        return str(self.shell.json(*command, *claims)["rule_id"])

    def inspect(self, token: str, *options: str, code: int = 1) -> dict[str, tuple[str, str]]:
        """Return the outcome and the detail of each check."""
        arguments = ["token", "inspect", "--output", "json", *options]
        result = CliRunner().invoke(main, arguments, env=self.shell.environment, input=f"{token}\n")
        assert result.exit_code == code, result.output
        assert not [part for part in token.split(".") if len(part) > 8 and part in result.output]
        return {check["check"]: (check["outcome"], check["detail"]) for check in json.loads(result.stdout)}


def now() -> FakeClock:
    """Return a clock that stands still at the present time, which the command reads from the system."""
    return FakeClock(time.time())


@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_faultless_token_of_each_platform_passes_every_check(shell: Shell, kind: str) -> None:
    inspected = Inspected(shell, PLATFORMS[kind](now()))
    checks = inspected.inspect(inspected.platform.token(), code=0)
    assert list(checks) == NAMES
    assert {outcome for outcome, _ in checks.values()} == {"ok"}
    conditions = " ".join("=".join(item) for item in inspected.platform.conditions.items())
    assert checks["rule"][1] == f"{inspected.rule_id}: {conditions}"
    assert checks["client"][1] == f"{inspected.client_id} (agent)"
    assert checks["use"][1] == (
        "accepted once, and not used yet" if kind == "github" else "accepted again until it expires"
    )
    assert checks["issuer"][1] == f"{inspected.platform.issuer}: {inspected.platform.name} ({kind})"
    assert checks["signature"][1].startswith(f"by a key of {inspected.platform.name}, given ")


def test_the_result_is_also_printed_for_people(shell: Shell) -> None:
    inspected = Inspected(shell, kubernetes(now()))
    token = inspected.platform.token()
    result = CliRunner().invoke(main, ["token", "inspect"], env=shell.environment, input=token)
    assert result.exit_code == 0
    assert "accepted as client_assertion, and as assertion of the JWT bearer grant" in result.stdout
    assert token not in result.output


def test_a_token_without_a_rule_shows_the_closest_one(shell: Shell) -> None:
    inspected = Inspected(shell, github(now()))
    inspected.inspect(inspected.platform.token(), code=0)
    checks = inspected.inspect(inspected.platform.token(ref="refs/heads/dev"))
    repository_id = inspected.platform.conditions["repository_id"]
    told = f"no rule of github matches repository_id={repository_id} ref=refs/heads/dev"
    assert checks["rule"] == ("failed", told), "the claims that a rule should require"
    differs = f"of {inspected.client_id}: ref is refs/heads/dev, not refs/heads/main"
    assert checks[inspected.rule_id] == ("failed", differs)
    assert checks["use"][0] == checks["client"][0] == "not checked"
    assert {checks[name][0] for name in NAMES[:7]} == {"ok"}


def test_an_issuer_without_rules_names_the_command(shell: Shell) -> None:
    inspected = Inspected(shell, oidc(now()))
    shell.text("client", "trust", "remove", inspected.client_id, inspected.rule_id)
    checks = inspected.inspect(inspected.platform.token())
    assert checks["rule"] == ("failed", "login has no rules. The claims to use: authserver issuer claims oidc")


def test_a_token_with_rules_of_two_clients_names_both(shell: Shell) -> None:
    inspected = Inspected(shell, github(now()))
    other = shell.json(*CREATE, "--auth-method", "workload_identity")["client_id"]
    second = inspected.trust({"sub": "repo:acme/ops:ref:refs/heads/main"}, other)
    checks = inspected.inspect(inspected.platform.token())
    outcome, detail = checks["rule"]
    assert (outcome, detail.startswith("rules of several clients match, so the token is refused: ")) == ("failed", True)
    for rule_id, client_id in ((inspected.rule_id, inspected.client_id), (second, other)):
        assert f"{rule_id} of {client_id}" in detail
        assert checks[rule_id][0] == "failed"
    assert checks.keys() == {*NAMES, inspected.rule_id, second}
    assert checks["use"][0] == checks["client"][0] == "not checked"
    shell.text("client", "trust", "remove", other, second)
    assert list(inspected.inspect(inspected.platform.token(), code=0)) == NAMES


@pytest.mark.parametrize(
    ("changes", "check", "detail"),
    [
        ({"aud": "https://other.example.com"}, "aud", f"aud is https://other.example.com, not {ISSUER} alone. Request"),
        (
            {"aud": [ISSUER, "https://other.example.com"]},
            "aud",
            f"aud is {ISSUER} and https://other.example.com, not {ISSUER} alone",
        ),
        ({"aud": None}, "aud", f"aud is missing; it must be {ISSUER} alone"),
        ({"exp": 1_000_000_000}, "time", "Read the token again for each request"),
        ({"exp": 4_000_000_000}, "time", "valid for longer than 3600 s from now"),
        ({"exp": None}, "time", "exp is missing"),
        ({"nbf": 4_000_000_000}, "time", "nbf is in the future"),
        ({"sub": None}, "sub", "sub is missing"),
    ],
    ids=["audience", "two audiences", "no audience", "expired", "too long", "no exp", "early", "no sub"],
)
def test_each_check_of_the_claims_can_fail_alone(
    shell: Shell, changes: dict[str, Any], check: str, detail: str
) -> None:
    inspected = Inspected(shell, kubernetes(now()))
    inspected.inspect(inspected.platform.token(), code=0)
    checks = inspected.inspect(inspected.platform.token(**changes))
    failed = checks.pop(check)
    assert (failed[0], detail in failed[1]) == ("failed", True)
    assert {outcome for outcome, _ in checks.values()} == {"ok"}


def test_an_audience_that_only_the_grant_accepts_fails_unless_only_the_grant_matters(shell: Shell) -> None:
    inspected = Inspected(shell, oidc(now()))
    token, plain = inspected.platform.token(aud=f"{ISSUER}/"), inspected.platform.token()
    told = (
        "accepted as assertion of the JWT bearer grant only; refused as client_assertion:"
        f" aud is {ISSUER}/, not {ISSUER} alone."
        f" Request a token for the audience {ISSUER} from the platform, without the slash at its end."
    )
    assert inspected.inspect(token)["aud"] == ("failed", told)
    as_grant = inspected.inspect(token, "--form", "grant", code=0)
    assert as_grant["aud"] == ("ok", "accepted as assertion of the JWT bearer grant")
    refused = inspected.inspect(token, "--form", "client-assertion")
    assert refused["aud"] == ("failed", told.partition(": ")[2])
    for form in ("grant", "client-assertion"):
        assert inspected.inspect(plain, "--form", form, code=0)["aud"][0] == "ok"


@pytest.mark.parametrize("form", ["grant", "client-assertion"])
def test_an_access_token_passes_as_no_form_of_a_platform_token(shell: Shell, form: str) -> None:
    """A script that asks whether a token will be accepted in a form must not be told so of one that never is."""
    inspected = Inspected(shell, oidc(now()))
    shell.text("client", "grant", "add", inspected.client_id, "--resource", RESOURCE, "--scope", "env:read")
    issued = shell.json("token", "issue", "--client", inspected.client_id, "--resource", RESOURCE)
    assert inspected.inspect(inspected.platform.token(), "--form", form, code=0)
    assert inspected.inspect(issued["access_token"], code=0)
    arguments = ["token", "inspect", "--form", form]
    result = CliRunner().invoke(main, arguments, env=shell.environment, input=issued["access_token"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Leave out --form, which is for platform tokens only." in result.stderr


def test_a_claim_cannot_look_like_another_one(shell: Shell) -> None:
    """CWE-451: an administrator reads claims that anybody may have chosen, and writes rules from them."""
    inspected = Inspected(shell, github(now()))
    known = {"repository_id": "1", "sub": "x"}
    forged = 'refs/heads/a" repository_id="74'
    told = inspected.inspect(inspected.platform.token(**known, ref="refs/heads/a b"))["rule"][1]
    assert 'ref="refs/heads/a b"' in told
    told = inspected.inspect(inspected.platform.token(**known, ref=forged))["rule"][1]
    assert 'repository_id="74' not in told
    assert r'ref="refs/heads/a\x22 repository_id=\x2274"' in told


def test_the_setting_of_the_platform_is_named_after_the_checks(shell: Shell) -> None:
    inspected = Inspected(shell, kubernetes(now()))
    setting = f"Project a token into the pod: serviceAccountToken with audience: {ISSUER}"
    forms = (
        "`resourceserver token`, the bridge and most SDKs send a token as client_assertion. To check it as assertion of"
        " the JWT bearer grant alone, run: authserver token inspect --form grant"
    )
    for audience, lines in (
        (ISSUER, []),
        ("https://kubernetes.default.svc", [setting]),
        (f"{ISSUER}/", [forms, setting]),
    ):
        token = inspected.platform.token(aud=[audience])
        result = CliRunner().invoke(main, ["token", "inspect"], env=shell.environment, input=token)
        assert result.exit_code == (1 if lines else 0)
        assert result.stderr.splitlines() == lines


@pytest.mark.parametrize(
    ("header", "check", "detail"),
    [
        ({"typ": "dpop+jwt"}, "typ", "typ is dpop+jwt, not that of a platform token"),
        ({"typ": "at+jwt"}, "typ", "typ is at+jwt, not that of a platform token"),
        ({"x5t": "AAAA"}, "typ", "header member refused: x5t. Run: authserver issuer show cluster"),
        ({"jku": "https://evil.example"}, "header", "header member refused: jku"),
        ({"kid": "other"}, "signature", "no key with the kid other for RS256. Run: authserver issuer update"),
    ],
    ids=["proof", "access token", "member of another kind", "address of keys", "unknown key"],
)
def test_each_check_of_the_header_can_fail(shell: Shell, header: dict[str, Any], check: str, detail: str) -> None:
    inspected = Inspected(shell, kubernetes(now()))
    inspected.inspect(inspected.platform.token(header={"typ": "JWT"}), code=0)
    checks = inspected.inspect(inspected.platform.token(header=header))
    assert checks[check][0] == "failed"
    assert detail in checks[check][1]
    assert list(checks) == NAMES
    later = {checks[name][0] for name in NAMES[NAMES.index(check) + 1 :]}
    assert later == ({"ok"} if check == "typ" else {"not checked"})


def test_a_token_that_another_signed_gets_no_further_check(shell: Shell) -> None:
    inspected = Inspected(shell, kubernetes(now()))
    token = inspected.platform.token()
    inspected.inspect(token, code=0)
    head, payload, signature = token.split(".")
    checks = inspected.inspect(f"{head}.{payload}.{signature[:8][::-1]}{signature[8:]}")
    assert checks["signature"][0] == "failed"
    assert "signature does not match" in checks["signature"][1]
    assert {checks[name][0] for name in NAMES[3:]} == {"not checked"}


def test_an_unknown_and_a_disabled_issuer_are_told_apart(shell: Shell) -> None:
    inspected = Inspected(shell, kubernetes(now()))
    token = inspected.platform.token()
    assert inspected.inspect(token, code=0)
    shell.text("issuer", "disable", "cluster")
    told = "the trusted issuer cluster is disabled. Run: authserver issuer enable cluster"
    assert inspected.inspect(token)["issuer"] == ("failed", told)
    shell.text("issuer", "remove", "cluster", "--yes")
    told = f"no trusted issuer has the iss {CLUSTER_ISSUER}. Run: authserver issuer list"
    assert inspected.inspect(token)["issuer"] == ("failed", told)


@pytest.mark.parametrize(("trusted", "iss"), [("", "/"), ("/", "")])
def test_an_iss_that_differs_by_a_slash_is_named(shell: Shell, trusted: str, iss: str) -> None:
    platform = oidc(now())
    url = platform.issuer
    platform.issuer = f"{url}{trusted}"
    inspected = Inspected(shell, platform)
    assert inspected.inspect(platform.token(iss=platform.issuer), code=0)
    told = (
        f"no trusted issuer has the iss {url}{iss} of the token. login has {url}{trusted}: they differ by the slash at"
        f" the end. Remove login with its rules, and add it with --issuer {url}{iss}"
    )
    assert inspected.inspect(platform.token(iss=f"{url}{iss}"))["issuer"] == ("failed", told)
    for other in ("https://elsewhere.example.com", f"{url}/path/"):
        assert inspected.inspect(platform.token(iss=other))["issuer"][1].endswith(
            f"{other}. Run: authserver issuer list"
        )


def test_a_disabled_client_is_named(shell: Shell) -> None:
    inspected = Inspected(shell, spiffe(now()))
    token = inspected.platform.token()
    assert inspected.inspect(token, code=0)
    shell.text("client", "disable", inspected.client_id)
    told = f"{inspected.client_id} is disabled. Run: authserver client enable {inspected.client_id}"
    assert inspected.inspect(token)["client"] == ("failed", told)


def test_a_claim_cannot_act_on_the_terminal_or_show_a_secret(shell: Shell) -> None:
    inspected = Inspected(shell, oidc(now()))
    checks = inspected.inspect(inspected.platform.token(sub="a\x1b[2J gths_0123456789abcdef"))
    assert checks["sub"] == ("ok", '"a\\x1b[2J [masked]"')
    assert "gths_" not in json.dumps(checks)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_for_one_use_is_reported_after_its_use(authserver: AuthServer, form: str) -> None:
    client = WorkloadClient(authserver, github(authserver.clock))
    token = client.platform.token()

    def use() -> Check:
        checks = {check.check: check for check in inspection(authserver, token).run()}
        assert {check.outcome for name, check in checks.items() if name != "use"} == {"ok"}
        return checks["use"]

    assert use().outcome == "ok"
    assert use().outcome == "ok", "the inspection does not use it"
    client.accepted(form, token)
    assert (use().outcome, "used before" in use().detail) == ("failed", True)
    assert client.post(form, token).status_code == REFUSALS[form][0]


def inspection(server: AuthServer, token: str, **changes: Any) -> PlatformInspection:
    """Return an inspection as the command makes it, at the time of the server."""
    with server.services.database.read() as session:
        issuers = load_issuers(session.connection())
        rules = {one.name: rules_of_issuer(session.connection(), one.name) for one in issuers}
        spent = {(row.purpose, row.client_id, row.jti_digest) for row in session.query(SpentAssertionRow)}
    values = {
        "verifier": WorkloadVerifier(server.settings.issuer),
        "issuers": issuers,
        "find_rules": rules.__getitem__,
        "find_client": server.services.authenticator.clients.get,
        "is_spent": lambda client_id, digest: (PLATFORM_TOKEN, client_id, digest) in spent,
        "now": server.clock(),
        **changes,
    }
    return PlatformInspection(token, **values)


def test_a_failed_fetch_is_named_beside_the_age_of_the_keys(authserver: AuthServer) -> None:
    workload = WorkloadClient(authserver, oidc(authserver.clock), location=DISCOVERY)
    token = workload.platform.token()

    def signature(token: str = token) -> str:
        return next(check.detail for check in inspection(authserver, token).run() if check.check == "signature")

    authserver.clock.advance(13 * 60)
    assert signature() == "by a key of login, fetched 13 min ago"
    failed = {"attempted_at": int(authserver.clock()) - 30, "failure": "status 503, not 200"}
    with authserver.services.database.write() as session:
        session.execute(update(TrustedIssuerRow).values(failed))
    told = "the last fetch of the keys failed 30 s ago: status 503, not 200"
    assert signature() == f"by a key of login, fetched 13 min ago; {told}"
    unknown = workload.platform.token(header={"kid": "new"})
    assert signature(unknown).endswith(f"{told}. Run: authserver issuer show login")
    with authserver.services.database.write() as session:
        session.execute(update(TrustedIssuerRow).values(failure="no connection; is the issuer up?"))
    assert signature(unknown).endswith("is the issuer up? Run: authserver issuer show login")


def test_a_client_of_a_rule_can_be_missing_or_of_another_method(authserver: AuthServer) -> None:
    workload = WorkloadClient(authserver, kubernetes(authserver.clock))
    token, other = workload.platform.token(), authserver.create_client()[0]

    def client_check(found: Client | None) -> Check:
        *_, check = inspection(authserver, token, find_client=lambda _: found).run()
        return check

    assert client_check(workload.client).outcome == "ok"
    assert client_check(None).detail == f"{workload.client.client_id} does not exist"
    told = f"{workload.client.client_id} is registered for client_secret_basic, not for workload_identity"
    assert client_check(other).detail == told


def test_two_rules_of_one_client_do_not_contradict_each_other(authserver: AuthServer) -> None:
    workload = WorkloadClient(authserver, oidc(authserver.clock))
    rules = [Rule("rule_a", workload.client.client_id, {"sub": workload.platform.workload["sub"]}), workload.rule]
    checks = inspection(authserver, workload.platform.token(), find_rules=lambda _: rules).run()
    assert {check.outcome for check in checks} == {"ok"}


def test_a_token_without_any_known_claim_is_described(authserver: AuthServer) -> None:
    workload = WorkloadClient(authserver, oidc(authserver.clock))
    checks = {check.check: check for check in inspection(authserver, workload.platform.token(sub=None)).run()}
    assert checks["rule"].detail == "no rule of login matches its claims"


@pytest.mark.parametrize(
    ("header", "changes", "is_platform"),
    [
        ({}, {}, True),
        ({"typ": "oauth-id-jag+jwt"}, {}, True),
        ({"jku": "https://evil.example"}, {}, True),
        ({"typ": "at+jwt"}, {}, True),
        ({"typ": "at+jwt"}, {"iss": "https://elsewhere.example"}, False),
        ({"typ": "JWT"}, {"iss": "https://elsewhere.example"}, True),
        ({"typ": "JWT"}, {"iss": ISSUER}, False),
        ({"typ": "JWT"}, {"iss": "agent_1", "sub": "agent_1"}, False),
        ({"typ": "JWT"}, {"iss": None, "sub": "spiffe://elsewhere.example/agent"}, True),
    ],
)
def test_platform_tokens_are_told_apart_by_iss_and_typ(
    clock: FakeClock, trusted: list[TrustedIssuer], header: dict[str, Any], changes: dict[str, Any], is_platform: bool
) -> None:
    token = kubernetes(clock).token(header=header, **changes)
    assert looks_like_platform_token(token, ISSUER, trusted) is is_platform


@pytest.mark.parametrize("token", ["a.b.c", "e30.e30.", "e30.W10.e30", "..", "e30.!.e30"])
def test_a_malformed_token_is_not_taken_for_that_of_a_platform(trusted: list[TrustedIssuer], token: str) -> None:
    assert looks_like_platform_token(token, ISSUER, trusted) is False


@pytest.fixture
def trusted(authserver: AuthServer) -> list[TrustedIssuer]:
    return [WorkloadClient(authserver, kubernetes(authserver.clock)).issuer]
