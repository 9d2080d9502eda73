"""Providers: values that a catalogue injects into its tools, without the directory."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import URL, text
from sqlalchemy.orm import Session
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

from gatehouse.directory.migrations import SCHEMA
from gatehouse.resourceserver.catalogue import (
    Catalogue,
    InvalidCatalogue,
    Progress,
    ProviderCall,
    Scope,
    ToolFailed,
    ToolGroup,
    Transactions,
    provider,
)
from gatehouse.resourceserver.db.database import Database
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.service.migrations import Schema, SchemaMismatch

pytestmark = pytest.mark.anyio

SCOPES = [Scope("ledger:use", "Use the ledger")]


class Overdrawn(Exception):
    """An error that the ledger's callers may see."""

    reason = "the balance is 0"
    remediation = "ledger credit"


class Closed(Exception):
    """A public error without a reason or a remediation."""


class Cancelled(Exception):
    """A public error of another library, whose attributes are not texts."""

    reason = ValueError("the balance is 0")
    remediation = b"ledger credit"


class Ledger:
    """A table of entries, in the call's transaction."""

    def __init__(self, session: Session, owner: str) -> None:
        self._session = session
        self._owner = owner

    def add(self, entry: str) -> None:
        self._session.execute(
            text("INSERT INTO ledger VALUES (:owner, :entry)").bindparams(owner=self._owner, entry=entry)
        )


class Weather:
    """A value that needs no transaction."""

    def __init__(self, now: float) -> None:
        self.now = now


class Entry(BaseModel):
    """The result of the tools."""

    entry_id: str
    note: str


def is_entry_id(value: object) -> bool:
    return str(value).startswith("id-")


class Counted:
    """A catalogue that counts the calls of its providers."""

    def __init__(self) -> None:
        self.opened: list[str] = []

        @provider(transactional=True, public_errors=(Overdrawn, Closed, Cancelled), audited=is_entry_id)
        def open_ledger(call: ProviderCall) -> Ledger:
            self.opened.append("ledger")
            return Ledger(call.session, call.claims.client_id)

        @provider()
        async def look_outside(call: ProviderCall) -> Weather:
            self.opened.append("weather")
            return Weather(call.now)

        self.providers: dict[type, Any] = {Ledger: open_ledger, Weather: look_outside}
        self.group = ToolGroup()
        self._declare()
        self.catalogue = Catalogue("Ledger", SCOPES, [self.group], providers=self.providers)

    def _declare(self) -> None:
        @self.group.tool(scopes=["ledger:use"])
        def add_entry(ledger: Ledger, note: str) -> Entry:
            """Add an entry."""
            ledger.add(note)
            if note == "overdrawn":
                raise Overdrawn("You have nothing left. Ask for credit.")
            if note == "closed":
                raise Closed("The ledger is closed.")
            if note == "cancelled":
                raise Cancelled("The entry was cancelled.")
            if note == "broken":
                raise RuntimeError("hunter2")
            return Entry(entry_id="id-1", note=note)

        @self.group.tool(scopes=["ledger:use"], read_only=True)
        async def forecast(weather: Weather) -> Entry:
            """Look outside."""
            return Entry(entry_id="id-2", note=f"{weather.now}")

        @self.group.tool(scopes=["ledger:use"], streaming=True)
        async def add_many(transactions: Transactions, progress: Progress, of_type: str = "ledger") -> Entry:
            """Add an entry in a short transaction."""
            await progress.report(0, 1)
            await transactions.run(Ledger if of_type == "ledger" else Weather, lambda opened: opened.add("many"))
            return Entry(entry_id="id-3", note="many")


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
async def server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, counted: Counted, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    folder = tmp_path / "rs"
    async with running_resource_server(folder, resourceserver_template, clock, counted.catalogue) as running:
        with running.admin_database.write() as session:
            session.execute(text("CREATE TABLE ledger (owner TEXT, entry TEXT)"))
        yield running


@pytest.fixture
def token(server: ResourceServer) -> str:
    return server.issuer.token("ledger:use")


def entries(server: ResourceServer) -> list[tuple[str, str]]:
    with server.admin_database.read() as session:
        return [(owner, entry) for owner, entry in session.execute(text("SELECT owner, entry FROM ledger"))]


# Values


async def test_a_value_is_made_only_for_tools_that_ask_for_it(
    server: ResourceServer, token: str, counted: Counted, clock: FakeClock
) -> None:
    assert (await server.result("forecast", token))["note"] == str(float(clock()))
    assert counted.opened == ["weather"]
    await server.result("add_entry", token, note="milk")
    assert counted.opened == ["weather", "ledger"]
    assert entries(server) == [("agent_1", "milk")]


async def test_only_tools_that_write_in_the_transaction_take_a_key(
    server: ResourceServer, token: str, counted: Counted
) -> None:
    tools = counted.catalogue.tools
    taking = {name for name, tool in tools.items() if "idempotency_key" in tool.input_schema["properties"]}
    assert taking == {"add_entry"}
    first = await server.result("add_entry", token, note="milk", idempotency_key="key-00001")
    assert await server.result("add_entry", token, note="milk", idempotency_key="key-00001") == first
    assert entries(server) == [("agent_1", "milk")]


async def test_transactions_open_the_transactional_provider_of_the_catalogue(
    server: ResourceServer, token: str
) -> None:
    await server.result("add_many", token)
    assert entries(server) == [("agent_1", "many")]
    assert "Report the request id" in await server.failure("add_many", token, of_type="weather")
    assert server.audit()[-1]["reason"] == "internal error: LookupError"


# Results and errors


async def test_the_audit_log_keeps_the_members_named_by_the_provider(server: ResourceServer, token: str) -> None:
    await server.result("add_entry", token, note="milk")
    assert server.audit()[-1]["detail"] == {"entry_id": "id-1"}
    await server.result("forecast", token)
    await server.result("add_entry", token, note="id-x")
    assert server.audit()[-1]["detail"] == {"entry_id": "id-1", "note": "id-x"}


async def test_a_public_error_has_a_text_for_agent_and_operator(server: ResourceServer, token: str) -> None:
    assert await server.failure("add_entry", token, note="overdrawn") == "You have nothing left. Ask for credit."
    event = server.audit()[-1]
    assert (event["outcome"], event["reason"], event["detail"]) == (
        *("failed", "the balance is 0"),
        {"remediation": "ledger credit"},
    )
    assert await server.failure("add_entry", token, note="closed") == "The ledger is closed."
    assert server.audit()[-1]["reason"] == "Closed"
    assert await server.failure("add_entry", token, note="cancelled") == "The entry was cancelled."
    event = server.audit()[-1]
    assert (event["reason"], event["detail"]) == ("Cancelled", {})
    assert entries(server) == []


async def test_any_other_error_stays_private_and_is_rolled_back(server: ResourceServer, token: str) -> None:
    answer = await server.failure("add_entry", token, note="broken")
    assert "hunter2" not in answer
    assert server.audit()[-1]["reason"] == "internal error: RuntimeError"
    assert entries(server) == []


def test_a_tool_may_give_the_operator_a_reason_and_a_remediation() -> None:
    error = ToolFailed("Try a door.", reason="it is a wall", remediation="build a door")
    assert (str(error), error.reason, error.remediation) == ("Try a door.", "it is a wall", "build a door")


# Invalid catalogues


def test_a_provider_must_be_declared_and_for_a_type_of_the_catalogue(counted: Counted) -> None:
    def undeclared(call: ProviderCall) -> Ledger:
        return Ledger(call.session, "")

    async def outside(call: ProviderCall) -> Weather:
        return Weather(call.now)

    with pytest.raises(InvalidCatalogue, match=r"The provider of Ledger is not declared\. Write @provider\(\) bef"):
        Catalogue("Ledger", SCOPES, [], providers={Ledger: undeclared})  # type: ignore[dict-item]
    for provided, problem in (
        (provider(transactional=True)(outside), r"is transactional, and async\. It runs in a thread"),
        (provider()(undeclared), r"runs on the event loop, and is not async\. Write it with async def"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidCatalogue, match=f"The provider of Weather {problem}"):
            Catalogue("Ledger", SCOPES, [], providers={Weather: provided})
    with pytest.raises(InvalidCatalogue, match="AccessClaims cannot have a provider"):
        Catalogue("Ledger", SCOPES, [], providers={AccessClaims: counted.providers[Ledger]})


def test_transactions_need_a_transactional_provider(counted: Counted) -> None:
    async def importing(transactions: Transactions, progress: Progress) -> Entry:
        """Import."""
        return Entry(entry_id="", note=f"{transactions} {progress}")

    group = ToolGroup()
    group.tool(scopes=["ledger:use"], streaming=True)(importing)
    assert Catalogue("Ledger", SCOPES, [group], providers=counted.providers)
    with pytest.raises(InvalidCatalogue, match=r"test_providers\.py:\d+: importing takes Transactions, but its cata"):
        Catalogue("Ledger", SCOPES, [group], providers={Weather: counted.providers[Weather]})


def test_a_provider_without_a_transaction_has_no_session() -> None:
    claims = AccessClaims("iss", "agent_1", "agent_1", "https://rs", 0, 1, "jti-1", frozenset())
    with pytest.raises(LookupError, match="Only a transactional provider"):
        ProviderCall(claims, 0).session.flush()


# Schema and command


def test_a_catalogue_loads_its_schema_and_its_command_by_name() -> None:
    bare = Catalogue("Ledger", SCOPES, [])
    assert (bare.load_schema(), bare.load_command()) == (None, None)
    full = Catalogue(
        "Ledger",
        SCOPES,
        [],
        migrations="gatehouse.directory.migrations:SCHEMA",
        cli="gatehouse.directory.cli:workspace",
    )
    schema, command = full.load_schema(), full.load_command()
    assert schema is not None
    assert schema.version_table == "directory_version"
    assert command is not None
    assert command.name == "workspace"


@pytest.mark.both_databases
def test_a_catalogue_cannot_use_the_version_table_of_the_gateway(empty_database: URL) -> None:
    """The catalogue's revisions would pass for the gateway's, and its tables would not be made."""
    for schema in (Schema("gatehouse.directory:migrations", "resourceserver init"), Database.schema):
        with Database(empty_database, schema) as database:
            for use in (database.migrate, database.require_current):
                with pytest.raises(SchemaMismatch, match=r"gateway's version table, alembic_version\. Give it a table"):
                    use()
    with Database(empty_database, SCHEMA) as database:
        database.migrate()
        database.require_current()


def test_the_gateway_does_not_import_the_directory() -> None:
    script = (
        "import gatehouse.resourceserver.app, sys;"
        "assert not any(name.startswith('gatehouse.directory') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
