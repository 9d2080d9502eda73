"""Fixtures of all tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support import authserver as authserver_support
from support import resourceserver as resourceserver_support
from support.authserver import AuthServer
from support.clock import FakeClock
from support.resourceserver import ResourceServer, running_resource_server


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's shell reaches a server under test."""
    import os

    for name in os.environ:
        if name.startswith(("AUTHSERVER_", "RESOURCESERVER_")):
            monkeypatch.delenv(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def authserver_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialized installation, made once and copied for every test."""
    folder = tmp_path_factory.mktemp("authserver")
    authserver_support.prepare_installation(folder, FakeClock())
    return folder


@pytest.fixture(scope="session")
def resourceserver_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialized installation, made once and copied for every test."""
    folder = tmp_path_factory.mktemp("resourceserver")
    resourceserver_support.prepare_installation(folder)
    return folder


@pytest.fixture
def authserver(tmp_path: Path, authserver_template: Path, clock: FakeClock) -> Iterator[AuthServer]:
    """An authorization server with one resource registered: env:read, env:write (implies env:read), org:read."""
    server = AuthServer(tmp_path / "authserver", authserver_template, clock)
    server.add_resource()
    yield server
    server.close()


@pytest.fixture
async def resourceserver(
    tmp_path: Path, resourceserver_template: Path, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    """A resource server that knows its issuer's keys."""
    async with running_resource_server(tmp_path / "resourceserver", resourceserver_template, clock) as server:
        yield server
