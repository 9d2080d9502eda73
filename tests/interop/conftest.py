"""Both servers as real processes, and the clients registered with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack, free_port
from support import interop
from support.platform_server import SystemClock
from support.platforms import kubernetes
from support.prepared_stack import running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder as an interop test: it runs third-party clients."""
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker("interop")


@pytest.fixture(scope="session")
def page_port() -> int:
    """The port of the web pages that may call both servers."""
    return free_port()


@pytest.fixture(scope="session")
def stack(page_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A running installation shared by all tests."""
    origins = {
        f"{server}_ALLOWED_ORIGINS": f"http://localhost:{page_port}" for server in ("AUTHSERVER", "RESOURCESERVER")
    }
    with running(tmp_path_factory.mktemp("stack") / "stack", **origins) as stack:
        yield stack


@pytest.fixture(scope="session")
def node() -> str:
    """Path of the Node.js binary that runs the clients."""
    return interop.node()


@pytest.fixture(scope="session")
def workspace_id(stack: LocalStack) -> str:
    created: str = stack.run_json("resourceserver", "workspace", "create", "--name", "interop")["workspace_id"]
    return created


@pytest.fixture(scope="session")
def catalogue(stack: LocalStack) -> dict[str, Any]:
    """Output of `resourceserver tools`: every tool and its required scopes."""
    printed: dict[str, Any] = stack.run_json("resourceserver", "tools")
    return printed


@pytest.fixture(scope="session")
def readers(stack: LocalStack, workspace_id: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Credentials of a client with env:read, for each authentication method."""
    claim, folder = ("--claim", f"workspace_id={workspace_id}"), tmp_path_factory.mktemp("keys")
    return {
        "secret": stack.create_client("reader", "env:read", *claim),
        "private_key_jwt": stack.create_client(
            "key-reader", "env:read", *claim, "--generate-key", str(folder / "reader.pem")
        ),
        "workload_identity": _workload(stack, folder, *claim),
    }


def _workload(stack: LocalStack, folder: Path, *claim: str) -> dict[str, Any]:
    """Return a client of a service account, with the file that holds its token."""
    platform = kubernetes(SystemClock())
    keys, token = folder / "cluster-keys.json", folder / "token"
    keys.write_bytes(platform.jwks())
    token.write_text(platform.token(aud=[stack.issuer]), encoding="ascii")
    issuer = ("--kind", "kubernetes", "--issuer", platform.issuer, "--jwks-file", str(keys))
    stack.run("authserver", "issuer", "add", platform.name, *issuer)
    client = stack.create_client("pod-reader", "env:read", *claim, "--auth-method", "workload_identity")
    conditions = [option for name, value in platform.conditions.items() for option in ("--claim", f"{name}={value}")]
    stack.run("authserver", "client", "trust", "add", client["client_id"], "--issuer", platform.name, *conditions)
    return {**client, "token_file": str(token)}


@pytest.fixture(scope="session")
def reader_token(stack: LocalStack, readers: dict[str, Any]) -> str:
    """An access token, for clients that cannot request one."""
    issue = ("token", "issue", "--client", readers["secret"]["client_id"], "--resource", stack.resource)
    issued: str = stack.run_json("authserver", *issue)["access_token"]
    return issued


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home directory of a client process."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder
