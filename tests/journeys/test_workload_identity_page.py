"""The commands of docs/workload-identity.md, as they stand there, with stand-ins for the platforms."""

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from mcp.client.auth.extensions.client_credentials import PrivateKeyJWTOAuthProvider
from support.certificates import Authority
from support.documents import ROOT, link_working_copy, typed
from support.platform_server import (
    Asked,
    ProjectedToken,
    SystemClock,
    install_programs,
    move,
    published,
    serving,
    to_json,
)
from support.platforms import Platform, github, gitlab, kubernetes, oidc, spiffe
from support.prepared_stack import PreparedStack

PAGE = (ROOT / "docs" / "workload-identity.md").read_text(encoding="utf-8")
ISSUER, RESOURCE = "https://auth.example.com", "https://mcp.example.com/mcp"
POD_TOKEN = "/var/run/secrets/gatehouse/token"
CREDENTIAL = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"
"""What the API server requires for its keys: a JWT."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
API_SERVER = "https://kubernetes.default.svc/openid"
"""The beginning of the address of its keys. The issuer of a cluster begins in the same way, and is not replaced."""

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)

BEFORE = """
export PATH="$PWD/.venv/bin:$PATH"
authserver init
resourceserver init
resourceserver tools --output json > catalogue.json
authserver resource add http://127.0.0.1:8000/mcp --name directory --catalogue catalogue.json
authserver serve 2> authserver.log &
resourceserver serve 2> resourceserver.log &
curl -fsw '\\n' --retry 30 --retry-all-errors --retry-delay 1 http://127.0.0.1:8000/readyz
"""

CLEAN_UP = "rm -f token.jwt "
"""How the removal of the tokens begins."""

LEFT = ("access-token", "token.json", "first-form.json", "second-form.json")
"""Files with access tokens that the commands write."""

SHOWN = "=== shown ==="
"""Stands in the output before and after the output of each command that the page shows with its output."""

VARYING = {
    r"agent_[0-9a-f]{20}": "CLIENT_ID",
    r"rule_[0-9a-f]{16}": "RULE_ID",
    r"req_[0-9a-f]{24}": "REQUEST_ID",
    r"\b\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)": "TIME",
    r"(?<![\w-])[\w-]{43}(?![\w-])": "THUMBPRINT",
    r"\b\d+ (s|min)\b": "DURATION",
    r"\s+": " ",
}
"""What differs from run to run in the output of commands, and what it is compared as."""


@dataclass
class Platforms:
    """All platforms of the page."""

    cluster: Platform = field(default_factory=lambda: kubernetes(SystemClock(), name="prod-cluster"))
    staging: Platform = field(default_factory=lambda: kubernetes(SystemClock(), name="staging-cluster"))
    github: Platform = field(default_factory=lambda: github(SystemClock(), environment="production"))
    gitlab: Platform = field(default_factory=lambda: gitlab(SystemClock()))
    spire: Platform = field(default_factory=lambda: spiffe(SystemClock()))
    plant: Platform = field(default_factory=lambda: spiffe(SystemClock(), name="plant"))
    login: Platform = field(default_factory=lambda: oidc(SystemClock()))

    def __post_init__(self) -> None:
        self.github.workload["repository_id"] = "74"

    def move(self, url: str, audience: str) -> None:
        """Serve them below a URL, and issue tokens for an audience."""
        for name in ("github", "gitlab", "login"):
            move(getattr(self, name), f"{url}/{name}")
        for platform in vars(self).values():
            platform.audience = audience

    def answer(self, asked: Asked) -> bytes | None:
        """Answer a request to one of the platforms, to GitHub's token service, or of a program."""
        _, name, *rest = asked.path.split("/")
        if name == "programs":
            return self._run(rest[0], shlex.split(asked.parameters["arguments"]))
        if asked.path == "/github/token" and asked.authorization == "Bearer of-the-job":
            return to_json({"count": 1, "value": self.github.token(aud=asked.parameters["audience"])})
        return published(getattr(self, name), f"/{'/'.join(rest)}")

    def answer_as_api_server(self, asked: Asked) -> bytes | None:
        """Answer a request to the API server, which wants a service account's token."""
        if asked.path == "/openid/v1/jwks" and asked.authorization == f"Bearer {CREDENTIAL}":
            return self.staging.jwks()
        return None

    def _run(self, program: str, arguments: list[str]) -> bytes:
        match program, *arguments:
            case "kubectl", "get", "--raw", "/openid/v1/jwks":
                return self.cluster.jwks()
            case "kubectl", "get", "serviceaccount", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}":
                account = self._service_account(namespace, name).workload["kubernetes.io"]["serviceaccount"]
                return str(account["uid"]).encode()
            case "kubectl", "create", "token", name, "-n", namespace, *options:
                audience = options[1] if options else "https://kubernetes.default.svc.cluster.local"
                return f"{self._service_account(namespace, name).token(aud=[audience])}\n".encode()
            case "spire-server", "bundle", "show", "-format", "spiffe":
                return self.plant.jwks()
            case "spire-agent", "api", "fetch", "jwt", "-audience", audience, "-socketPath", _:
                subject, domain = self.spire.workload["sub"], self.spire.issuer
                svid = self.spire.token(aud=[audience])
                return f"token({subject}):\n\t{svid}\nbundle({domain}):\n\t{{}}\n".encode()
        raise AssertionError((program, arguments))

    def _service_account(self, namespace: str, name: str) -> Platform:
        return kubernetes(self.cluster.clock, namespace=namespace, service_account=name, name="prod-cluster")


def documents(language: str) -> list[Any]:
    """Return the documents of every block of a language that can be read as YAML."""
    return [document for kind, text in BLOCK.findall(PAGE) if kind == language for document in yaml.safe_load_all(text)]


def service_account() -> Any:
    return next(document for document in documents("yaml") if document.get("kind") == "ServiceAccount")


def deployment() -> Any:
    return next(document for document in documents("yaml") if document.get("kind") == "Deployment")


def workflow() -> Any:
    return next(document for document in documents("yaml") if "jobs" in document)


def pipeline() -> Any:
    return next(document for document in documents("yaml") if "call" in document)


def script_of_the_page() -> Iterator[str]:
    """Yield the commands of the page in its order. Those of the workflow and the pipeline run where they stand."""
    for kind, text in BLOCK.findall(PAGE):
        if kind == "sh":
            yield text
            if "client trust add" in text:
                # The page says how long it takes until the rule is known.
                yield "sleep 1\n"
        elif kind == "console":
            for command, _ in commands_with_output(text):
                yield f"echo '{SHOWN}'\n{{ {command}; }} 2>&1 || true\necho '{SHOWN}'\n"
        elif kind == "yaml" and "\njobs:\n" in text:
            for step in workflow()["jobs"]["call"]["steps"]:
                yield f"(\n{step['run']})\n"
        elif kind == "yaml" and "id_tokens:" in text:
            yield "\n".join(["(", *pipeline()["call"]["script"], ")\n"])


def commands_with_output(block: str) -> list[tuple[str, str]]:
    """Return the commands of a `console` block, each with the output that it shows."""
    _, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def comparable(output: str) -> str:
    """Return output without what differs from run to run."""
    for pattern, name in VARYING.items():
        output = re.sub(pattern, name, output)
    return output.strip()


@pytest.fixture(scope="module")
def platforms() -> Platforms:
    return Platforms()


def test_the_commands_of_the_page_work_and_print_what_it_shows(platforms: Platforms, tmp_path: Path) -> None:
    link_working_copy(tmp_path)
    stack = PreparedStack(tmp_path)
    authority = Authority(tmp_path)
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod" / "ca.crt").write_bytes(authority.file.read_bytes())
    (tmp_path / "pod" / "token").write_text(CREDENTIAL, encoding="ascii")
    projected = ProjectedToken(tmp_path / "projected")
    with serving(platforms.answer) as url, serving(platforms.answer_as_api_server, authority.server_context()) as tls:
        here = {
            "https://token.actions.githubusercontent.com": f"{url}/github",
            "https://gitlab.example.com": f"{url}/gitlab",
            "https://login.example.com/tenant/v2.0": f"{url}/login",
            "https://spire.example.org:8443": f"{url}/spire/keys",
            API_SERVER: f"{tls}/openid",
            SERVICE_ACCOUNT: str(tmp_path / "pod"),
            POD_TOKEN: str(projected.file),
            ISSUER: "http://127.0.0.1:9000",
            RESOURCE: "http://127.0.0.1:8000/mcp",
        }
        install_programs(tmp_path / "programs", url, "kubectl", "spire-server", "spire-agent")
        platforms.move(url, stack.issuer)
        projected.replace(platforms.cluster.token())
        script = "".join(script_of_the_page())
        assert all(public in script for public in here)
        for public, local in here.items():
            script = script.replace(public, local)
        # The page ends with the removal of the tokens that it wrote.
        (tmp_path / "kept").mkdir()
        script = script.replace(CLEAN_UP, f"cp -- *.json kept\n{CLEAN_UP}", 1)
        programs = f'export PATH="{tmp_path / "programs"}:$PATH"\n'
        done = typed(
            f"{BEFORE}{programs}{script}\nkill $(jobs -p)",
            stack,
            tmp_path,
            ACTIONS_ID_TOKEN_REQUEST_URL=f"{url}/github/token?api-version=2.0",
            ACTIONS_ID_TOKEN_REQUEST_TOKEN="of-the-job",
            GATEHOUSE_ID_TOKEN=platforms.gitlab.token(),
            PLATFORM_TOKEN=platforms.login.token(),
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
    logs = "\n".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log"))
    printed = done.stdout.replace(stack.resource, RESOURCE).replace(stack.issuer, ISSUER)
    assert done.returncode == 0, f"{printed}\n{done.stderr}\n{logs}"
    assert "Traceback" not in done.stdout + done.stderr + logs
    for public, local in here.items():
        printed = printed.replace(local, public)
    assert_shown(printed)
    for form in ("first-form.json", "second-form.json", "token.json"):
        assert json.loads((tmp_path / "kept" / form).read_text())["scope"] == "env:read"
    assert not [*tmp_path.glob("*.jwt"), *(tmp_path / name for name in LEFT if (tmp_path / name).exists())]
    issued = stack.run_json("authserver", "audit", "--action", "token.issue", "--limit", "100")
    subjects = {event["detail"]["external_subject"] for event in issued if event["outcome"] == "allowed"}
    names = ("cluster", "github", "gitlab", "spire", "login")
    assert subjects == {getattr(platforms, name).workload["sub"] for name in names}


def assert_shown(printed: str) -> None:
    """Check that every command that the page shows with its output printed that output."""
    shown = [each for kind, text in BLOCK.findall(PAGE) if kind == "console" for each in commands_with_output(text)]
    runs = printed.split(f"{SHOWN}\n")[1::2]
    assert len(runs) == len(shown)
    for run, (command, output) in zip(runs, shown, strict=True):
        assert comparable(run) == comparable(output), f"$ {command}\n{run}"


def test_the_manifest_projects_the_token_that_the_commands_read() -> None:
    spec = deployment()["spec"]["template"]["spec"]
    (container,), (volume,) = spec["containers"], spec["volumes"]
    (mount,) = container["volumeMounts"]
    (source,) = volume["projected"]["sources"]
    projection = source["serviceAccountToken"]
    assert projection.keys() == {"path", "audience", "expirationSeconds"}
    assert projection["audience"] == ISSUER
    assert 600 <= projection["expirationSeconds"] <= 3600
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    assert f"{mount['mountPath']}/{projection['path']}" == POD_TOKEN
    assert container["env"] == [{"name": "BRIDGE_TOKEN_FILE", "value": POD_TOKEN}]
    account, namespace = service_account()["metadata"]["name"], service_account()["metadata"]["namespace"]
    assert (spec["serviceAccountName"], deployment()["metadata"]["namespace"]) == (account, namespace)
    assert service_account()["automountServiceAccountToken"] is False
    assert f"/kubernetes.io/namespace={namespace} --claim /kubernetes.io/serviceaccount/name={account}" in PAGE
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert deployment()["spec"]["selector"]["matchLabels"] == labels


def test_the_workflow_may_request_its_token_and_holds_no_secret() -> None:
    document = workflow()
    assert document["permissions"] == {"id-token": "write"}
    (job,) = document["jobs"].values()
    assert job["environment"] == "production"
    assert f"--claim environment={job['environment']}" in PAGE
    runs = "\n".join(step["run"] for step in job["steps"])
    assert f"audience={ISSUER}" in runs
    assert "--github-oidc" in runs
    assert "secrets." not in runs
    # YAML 1.1 reads the key `on` as true.
    assert document[True] == {"push": {"branches": ["main"]}}


def test_the_pipeline_requests_a_token_for_the_issuer_alone() -> None:
    job = pipeline()["call"]
    assert list(job["id_tokens"].values()) == [{"aud": ISSUER}]
    (variable,) = job["id_tokens"]
    assert f'"${variable}"' in job["script"][0]
    file = job["script"][0].rpartition("> ")[2]
    assert f"--token-file {file} " in job["script"][1]


def test_the_configuration_of_spiffe_helper_is_for_the_issuer() -> None:
    (configuration,) = (text for kind, text in BLOCK.findall(PAGE) if kind == "text")
    lines = [textwrap.dedent(line) for line in configuration.splitlines()]
    assert f'jwt_svids = [{{jwt_audience="{ISSUER}", jwt_svid_file_name="token"}}]' in lines
    assert 'agent_address = "/run/spire/sockets/agent.sock"' in lines
    assert "-socketPath /run/spire/sockets/agent.sock" in PAGE


def test_the_example_for_the_sdk_runs(tmp_path: Path) -> None:
    (example,) = (text for kind, text in BLOCK.findall(PAGE) if kind == "python")
    token = tmp_path / "token"
    token.write_text("a.b.c", encoding="ascii")
    names: dict[str, Any] = {"storage": None}
    exec(compile(example.replace(POD_TOKEN, str(token)), "docs/workload-identity.md", "exec"), names)
    assert anyio.run(names["platform_token"], ISSUER) == "a.b.c"
    assert isinstance(names["provider"], PrivateKeyJWTOAuthProvider)
