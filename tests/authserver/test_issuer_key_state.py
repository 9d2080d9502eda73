"""What `check`, `issuer show` and `issuer list` say of the keys of trusted issuers."""

import json
import time

import pytest
from support.clock import FakeClock
from support.document_server import DocumentServer
from support.issuer_commands import add, change, serve
from support.platforms import Platform, kubernetes
from support.shell import Shell

from gatehouse.authserver.workloads.issuer_keys import MAX_AGE
from gatehouse.authserver.workloads.key_state import describe_age


@pytest.fixture
def cluster() -> Platform:
    return kubernetes(FakeClock(time.time()))


def trusted_issuers(shell: Shell, *, code: int = 0) -> tuple[str, str]:
    """Return the outcome and the detail of the check of the trusted issuers."""
    result = shell.run("check", "--output", "json")
    assert result.exit_code == code, result.output
    checks = {check["check"]: check for check in json.loads(result.stdout)}
    return checks["trusted issuers"]["outcome"], checks["trusted issuers"]["detail"]


def test_check_reports_the_state_of_the_keys(shell: Shell, documents: DocumentServer, cluster: Platform) -> None:
    assert trusted_issuers(shell) == ("ok", "0 enabled, 0 disabled")
    serve(documents, cluster)
    shell.json("issuer", "add", "cluster", "--issuer", documents.url, "--kind", "kubernetes")
    assert trusted_issuers(shell) == ("ok", "1 enabled, 0 disabled")
    change(shell, fetched_at=int(time.time()) - 3 * 3600)
    idle = "1 enabled, 0 disabled; cluster: the keys are 3 h old; no server has fetched them since"
    assert trusted_issuers(shell) == ("ok", idle)
    failed = "the last fetch of the keys failed 60 min ago: status 503"
    for age, since, problem in (
        (13 * 60, 180, "the keys are 13 min old; the last fetch of the keys failed 3 min ago: status 503"),
        (3 * 3600, 3600, f"the keys are 3 h old; {failed}"),
    ):
        change(shell, fetched_at=int(time.time()) - age, attempted_at=int(time.time()) - since, failure="status 503")
        assert trusted_issuers(shell) == ("ok", f"1 enabled, 0 disabled; cluster: {problem}")
        assert shell.json("issuer", "show", "cluster")["keys_problem"] == problem
        assert problem in shell.text("issuer", "list")
    change(shell, fetched_at=int(time.time()) - MAX_AGE - 3600)
    told = f"cluster: the keys are 25 h old, and are used for 24 h; {failed}. See: authserver issuer list"
    assert trusted_issuers(shell, code=1) == ("failed", told)
    change(shell, fetched_at=int(time.time()) + 3600, failure=None)
    told = "cluster: a server whose clock is ahead fetched the keys. See: authserver issuer list"
    assert trusted_issuers(shell, code=1) == ("failed", told)
    shell.json("issuer", "disable", "cluster")
    assert trusted_issuers(shell) == ("ok", "0 enabled, 1 disabled")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (86400, "24 h")]
)
def test_an_age_is_given_in_a_suitable_unit(seconds: int, text: str) -> None:
    assert describe_age(seconds) == text


def test_check_fails_for_an_issuer_without_keys_of_its_own(shell: Shell, cluster: Platform) -> None:
    add(shell, cluster)
    assert trusted_issuers(shell) == ("ok", "1 enabled, 0 disabled")
    other = kubernetes(cluster.clock, name="other")
    add(shell, other)
    change(shell, jwks=cluster.jwks().decode())
    _, detail = trusted_issuers(shell, code=1)
    assert detail.startswith("cluster: another trusted issuer has the same keys; other: another trusted issuer has")
    change(shell, jwks=None, fetched_at=None)
    _, detail = trusted_issuers(shell, code=1)
    given = "authserver issuer update {0} --jwks-file FILE"
    told = "; ".join(f"{name}: no keys are known. Give them: {given.format(name)}" for name in ("cluster", "other"))
    assert detail.startswith(told)
    change(shell, discovery=True, failure="status 503", attempted_at=int(time.time()) - 3600)
    _, detail = trusted_issuers(shell, code=1)
    assert detail.startswith("cluster: no keys are known; the last fetch of the keys failed 60 min ago: status 503; ")
