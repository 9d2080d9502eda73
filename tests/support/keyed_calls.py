"""Calls with an idempotency key: servers with one tool that writes, and what calls leave in the database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import func, select

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.directory.directory import Directory, open_directory
from gatehouse.directory.models import EnvironmentRow
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, ToolGroup
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

KEY = "import-2026:07.28_1"


class Worked(BaseModel):
    """The result of a tool."""

    text: str


def rows(server: ResourceServer, table: Any = EnvironmentRow) -> int:
    with server.admin_database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def outcomes(server: ResourceServer) -> list[tuple[str, str | None, bool]]:
    """Return the outcome and the reason of every call, and whether it was a replay."""
    events = server.audit(action="tool.call")
    return [(event["outcome"], event["reason"], "replayed" in event["detail"]) for event in events]


@asynccontextmanager
async def serving(
    folder: Path, template: Template, clock: FakeClock, tool: Any, scopes: Any = ANY_VALID_TOKEN, **options: Any
) -> AsyncIterator[ResourceServer]:
    """Run a server with one tool that writes."""
    group = ToolGroup()
    group.tool(scopes=scopes, read_only=False)(tool)
    catalogue = Catalogue("test", CATALOGUE.scopes.values(), [group], providers={Directory: open_directory})
    async with running_resource_server(folder, template, clock, catalogue, **options) as server:
        yield server
