"""Fixtures of all tests."""

import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import URL
from support import authserver as authserver_support
from support import resourceserver as resourceserver_support
from support.authserver import AuthServer
from support.clock import FakeClock
from support.databases import BACKENDS, PostgreSQL, Template, Templates, running_postgresql
from support.dialects import use_test_dialects
from support.logs import use_test_logs
from support.resourceserver import ResourceServer, running_resource_server
from support.workloads import Workloads, workloads_of_each_kind

from gatehouse.shared.service.database import parse_database_url

TESTS = Path(__file__).parent

use_test_dialects()
use_test_logs()

# No test depends on its duration.
hypothesis.settings.register_profile("gatehouse", deadline=None)
hypothesis.settings.load_profile("gatehouse")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of the developer's shell that would configure a server under test or prevent its start."""
    remove_settings(monkeypatch)


def remove_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the servers from the environment."""
    for name in os.environ:
        if name.startswith(("AUTHSERVER_", "RESOURCESERVER_", "BRIDGE_", "AUTHLIB_", "FLASK_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose the resource server without direct calls, if the test runs for calls through the SDK."""
    if getattr(request, "param", "direct") == "sdk":
        monkeypatch.setattr("gatehouse.resourceserver.app.direct_tools", lambda _: frozenset())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each database that its marker names, and a test of calls once for each way to dispatch."""
    if metafunc.definition.get_closest_marker("both_ways"):
        metafunc.parametrize("_calls", ["direct", "sdk"], indirect=True)
    if "backend" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only_on")
        both = metafunc.definition.get_closest_marker("both_databases")
        metafunc.parametrize("backend", only.args if only else BACKENDS if both else BACKENDS[:1])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute the tests of `make test`."""
    if config.getoption("dist") != "load":
        return None
    from support.scheduling import JourneysInOneProcess

    return JourneysInOneProcess(config, log)


TRACED = {"attacks", "authserver", "resourceserver", "shared"}
"""The folders whose tests cover the security core. Tracing doubles the time of a test, so others run without it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Trace only what the tests in TRACED run, with their fixtures."""
    plugin = item.config.pluginmanager.getplugin("_cov")
    coverage = plugin.cov_controller if plugin else None
    folder = item.path.relative_to(TESTS).parts[0]
    if coverage is None or folder in TRACED:
        return (yield)
    coverage.pause()
    try:
        return (yield)
    finally:
        coverage.resume()


def pytest_collection_finish() -> None:
    """Leave what was imported out of later garbage collections, which would visit all of it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A PostgreSQL server, started for the first test that needs it."""
    base = tmp_path_factory.getbasetemp()
    # With several processes, the base folder of each is inside the common base folder.
    with running_postgresql(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) as server:
        yield server


@pytest.fixture(scope="session")
def templates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Installations that are made once on each database and copied for every test."""
    return Templates(tmp_path_factory.mktemp, lambda: request.getfixturevalue("postgresql"))


@pytest.fixture
def authserver_template(templates: Templates, backend: str) -> Iterator[Template]:
    """An initialized authorization server with one resource: env:read, env:write (implies env:read), org:read."""
    template = templates.get(backend, "authserver", authserver_support.prepare_installation)
    yield template
    template.discard()


@pytest.fixture
def resourceserver_template(templates: Templates, backend: str) -> Iterator[Template]:
    """An initialized resource server."""
    template = templates.get(backend, "resourceserver", resourceserver_support.prepare_installation)
    yield template
    template.discard()


@pytest.fixture
def empty_database(request: pytest.FixtureRequest, backend: str, tmp_path: Path) -> Iterator[URL]:
    """An empty database; on SQLite, a file that does not exist yet."""
    if backend == "sqlite":
        yield parse_database_url(f"sqlite:///{tmp_path}/var/test.db")
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def authserver(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    """An authorization server with the template's resource."""
    server = AuthServer(tmp_path / "authserver", authserver_template, clock)
    yield server
    server.close()


@pytest.fixture(scope="module")
def new_shared_authserver(
    templates: Templates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], AuthServer]]:
    """What starts an authorization server for the tests of one file that change nothing on it, not even its clock."""
    template = templates.get(BACKENDS[0], "authserver", authserver_support.prepare_installation)
    servers = []

    def new() -> AuthServer:
        with pytest.MonkeyPatch.context() as monkeypatch:
            # Fixtures of a file run before those of a test.
            remove_settings(monkeypatch)
            servers.append(AuthServer(tmp_path_factory.mktemp("shared") / "authserver", template, FakeClock()))
        return servers[-1]

    yield new
    for server in servers:
        server.close()
    assert {server.clock() for server in servers} <= {FakeClock()()}, "a test advanced a clock that it shares"


@pytest.fixture(scope="module")
def shared_authserver(new_shared_authserver: Callable[[], AuthServer]) -> AuthServer:
    """An authorization server for the tests of one file that change nothing on it."""
    return new_shared_authserver()


@pytest.fixture(scope="module")
def workloads(shared_authserver: AuthServer) -> Workloads:
    """One client of a workload on each kind of platform, for the tests of one file, which change nothing."""
    return workloads_of_each_kind(shared_authserver)


@pytest.fixture
async def resourceserver(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    """A resource server that knows its issuer's keys."""
    async with running_resource_server(tmp_path / "resourceserver", resourceserver_template, clock) as server:
        yield server
