"""The clients of this project without a secret: they authenticate with the token of their platform."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from local_stack import LocalStack
from support import bridge
from support.clock import FakeClock
from support.documents import ROOT
from support.forks import fork_server
from support.platforms import Platform, github, kubernetes

pytestmark = pytest.mark.anyio

JOB_TOKEN = "actions-request-token-0123456789"


class Workload:
    """A client that a platform identifies."""

    def __init__(self, stack: LocalStack, folder: Path, platform: Platform, workspace: str) -> None:
        self.stack = stack
        self.platform = platform
        platform.audience = stack.issuer
        keys = folder / "jwks.json"
        keys.write_bytes(platform.jwks())
        name = folder.name.strip("_").lower()
        stack.run(
            *("authserver", "issuer", "add", name, "--issuer", platform.issuer, "--kind", platform.kind),
            *("--jwks-file", str(keys)),
        )
        created = stack.create_client(
            *("workload", "env:read env:write", "--claim", f"workspace_id={workspace}"),
            *("--auth-method", "workload_identity"),
        )
        self.client_id: str = created["client_id"]
        claims = [part for name, value in platform.conditions.items() for part in ("--claim", f"{name}={value}")]
        stack.run("authserver", "client", "trust", "add", self.client_id, "--issuer", name, *claims)

    def issued(self) -> list[dict[str, Any]]:
        """Return the audit events of this client's token requests."""
        return list(self.stack.run_json("authserver", "audit", "--client", self.client_id, "--action", "token.issue"))


@pytest.fixture
def pod(stack: LocalStack, workspace_id: str, tmp_path: Path) -> Workload:
    issuer, name = f"https://{tmp_path.name}.clusters.example", f"cluster of {tmp_path.name}"
    platform = kubernetes(FakeClock(time.time()), issuer, name=name)
    return Workload(stack, tmp_path, platform, workspace_id)


def mount(pod: Workload, folder: Path) -> Path:
    """Write a new token of the pod as kubelet does. Return the path that the pod reads."""
    version = folder / f"..version-{len(list(folder.glob('..version-*')))}"
    version.mkdir()
    (version / "token").write_text(pod.platform.token())
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").rename(folder / "..data")
    if not (folder / "token").is_symlink():
        (folder / "token").symlink_to("..data/token")
    return folder / "token"


class GitHubJob:
    """The token service of GitHub Actions, for one job."""

    def __init__(self, platform: Platform, address: str) -> None:
        self.platform = platform
        self.requests: list[dict[str, Any]] = []
        self.environment = {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{address}/197//idtoken/1?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB_TOKEN,
        }

    def answer(self, target: str, authorization: str | None) -> bytes:
        query = parse_qs(urlsplit(target).query)
        self.requests.append({"authorization": authorization, **query})
        return json.dumps({"count": 1, "value": self.platform.token(aud=query["audience"][0])}).encode()


@contextmanager
def running_job(platform: Platform) -> Iterator[GitHubJob]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = job.answer(self.path, self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        job = GitHubJob(platform, f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield job
        finally:
            server.shutdown()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[GitHubJob]:
    with running_job(github(FakeClock(time.time()), name=f"github of {tmp_path.name}")) as job:
        yield job


def token(stack: LocalStack, folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**stack.environment, "XDG_CACHE_HOME": str(folder), **env}
    return fork_server().run(
        ["resourceserver", "token", stack.resource, "--issuer", stack.issuer, *options], stack.folder, environment
    )


def run_agent(stack: LocalStack, **env: str) -> str:
    """Run the example agent to its end, and return what it printed."""
    options = ("--resource", stack.resource, "--issuer", stack.issuer, "--environment", env.pop("name"))
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "agent.py", *options],
        env={**stack.environment, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_token_of_a_pod_gets_an_access_token(stack: LocalStack, pod: Workload, tmp_path: Path) -> None:
    file = mount(pod, tmp_path)
    first = token(stack, tmp_path, "--token-file", str(file))
    assert (first.returncode, first.stderr) == (0, "")
    assert token(stack, tmp_path, BRIDGE_TOKEN_FILE=str(file)).stdout == first.stdout
    mount(pod, tmp_path)
    # The next token of the platform is another credential.
    assert token(stack, tmp_path, "--token-file", str(file)).stdout not in {"", first.stdout}
    assert [event["outcome"] for event in pod.issued()] == ["allowed", "allowed"]


@pytest.mark.threat("T-120")
def test_a_refused_platform_token_is_explained_without_it(stack: LocalStack, pod: Workload, tmp_path: Path) -> None:
    file = mount(pod, tmp_path)
    assert token(stack, tmp_path, "--token-file", str(file)).returncode == 0
    file.write_text(pod.platform.token(aud="https://kubernetes.default.svc"))
    refused = token(stack, tmp_path, "--token-file", str(file), BRIDGE_LOG_LEVEL="DEBUG")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "aud https://kubernetes.default.svc, exp " in refused.stderr
    assert f"Its aud is not {stack.issuer}." in refused.stderr
    assert f"`authserver token inspect < {file}`" in refused.stderr
    (request,) = re.findall(r"`authserver audit --request (\S+)`", refused.stderr)
    (event,) = stack.run_json("authserver", "audit", "--request", request)
    assert event["reason"].startswith("platform token: aud is https://kubernetes.default.svc")
    assert "eyJ" not in refused.stderr


async def test_a_desktop_client_uses_the_bridge_without_a_secret(
    stack: LocalStack, pod: Workload, tmp_path: Path
) -> None:
    file = mount(pod, tmp_path)
    async with bridge.start(stack, "legacy", "--token-file", str(file), "--issuer", stack.issuer) as desktop:
        assert (await desktop.call("whoami"))["client_id"] == pod.client_id


def test_the_example_agent_works_in_a_pod(stack: LocalStack, pod: Workload, tmp_path: Path) -> None:
    printed = run_agent(stack, name="in-a-pod", AGENT_TOKEN_FILE=str(mount(pod, tmp_path)))
    assert pod.client_id in printed
    assert "agent: created:" in printed
    assert "eyJ" not in printed


async def test_a_job_of_github_needs_no_secret(
    stack: LocalStack, workspace_id: str, job: GitHubJob, tmp_path: Path
) -> None:
    workload = Workload(stack, tmp_path, job.platform, workspace_id)
    first = token(stack, tmp_path, "--github-oidc", **job.environment)
    assert (first.returncode, first.stderr) == (0, "")
    assert token(stack, tmp_path, "--github-oidc", **job.environment).stdout == first.stdout
    # Each platform token is accepted once, so each token request needs a new one.
    second = token(stack, tmp_path, "--github-oidc", "--no-cache", **job.environment)
    assert second.stdout not in {"", first.stdout}
    options = ("--github-oidc", "--issuer", stack.issuer)
    async with bridge.start(stack, "legacy", *options, env=job.environment) as desktop:
        assert (await desktop.call("whoami"))["client_id"] == workload.client_id
    printed = run_agent(stack, name="in-a-job", AGENT_GITHUB_OIDC="1", **job.environment)
    assert workload.client_id in printed
    assert "agent: created:" in printed
    expected = {
        "authorization": f"Bearer {JOB_TOKEN}",
        "audience": [stack.issuer],
        "api-version": ["2.0"],
    }
    assert job.requests == [expected] * len(job.requests)
    assert len(job.requests) >= 4
    assert {event["outcome"] for event in workload.issued()} == {"allowed"}
