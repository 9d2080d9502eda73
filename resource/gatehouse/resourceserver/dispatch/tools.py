"""The only way to a tool: the policy, the call, and an audit event for whatever becomes of it.

The policy decides here again, whatever the gate decided. The gate tells HTTP clients which scopes they lack. If it were
missing, or misread a body, dispatch would still run only what the policy allows.
"""

import contextlib
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gatehouse.resourceserver import json_rpc, policy
from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import Context, VerifiedRequest
from gatehouse.resourceserver.catalogue import Catalogue, Tool
from gatehouse.resourceserver.db.request_database import CommitUnknown, RequestDatabase
from gatehouse.resourceserver.denial import Denial, deny
from gatehouse.resourceserver.dispatch.containment import Cancellation
from gatehouse.resourceserver.dispatch.failures import NOTHING_CHANGED, failure_of, unavailable
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.payload import Answer, error_answer
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.resourceserver.dispatch.resources import refuse_cursor
from gatehouse.resourceserver.dispatch.runner import ACTION, Call, ToolRunner, event_of
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.requests import UNAVAILABLE

TOOL_ERROR = "tool_error"
"""The error of a call whose result has `isError`, in metrics (OpenTelemetry's name for it)."""

_CLOSED = "the connection was closed before the end"
"""The reason in the audit log of a call that was cancelled."""

log = logging.getLogger(__name__)


class ToolDispatch:
    """Lists and calls the tools of a catalogue, for callers that the gate verified."""

    def __init__(
        self,
        catalogue: Catalogue,
        database: RequestDatabase,
        audit: AuditWriter,
        keys: IdempotencyKeys,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._database = database
        self._audit = audit
        self._runner = ToolRunner(database, audit, keys, clock)

    def input_schema(self, tool_name: str) -> dict[str, Any] | None:
        """Return the JSON schema of a tool's arguments; None for an unknown tool."""
        description = self._catalogue.descriptions.get(tool_name)
        return description.input_schema if description is not None else None

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """List the tools that the caller may call, in a fixed order. No cache may share it (MCP 2026-07-28, "Caching").

        Raises:
            MCPError: the request was not verified, or has a cursor, although the list has one page.
        """
        request = verified_request.require(context)
        refuse_cursor(params)
        callable_tools = policy.callable_tools(self._catalogue, request.claims)
        tools = [self._catalogue.descriptions[tool.name] for tool in callable_tools]
        return ListToolsResult(tools=tools, ttl_ms=0, cache_scope="private")

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Call a tool for the SDK's server. Raises MCPError as `call`, and if the request was not verified."""
        answer = await self.call(verified_request.require(context), params.name, params.arguments or {}, context)
        return answer.as_result()

    async def call(
        self, request: VerifiedRequest, tool_name: str, arguments: Mapping[str, Any], context: Context | None = None
    ) -> Answer:
        """Decide, validate, run, record.

        An error that an agent can fix is a result with `isError`: wrong arguments, or an exception with a public text.

        Args:
            request: the verified request.
            tool_name: the tool, as the caller named it.
            arguments: the arguments, as the caller sent them.
            context: the SDK's context of the request. A tool whose `needs_context` is set cannot be called without it.

        Raises:
            MCPError: the tool is unknown, the caller's scopes do not suffice, or the call ended with such an error.
        """
        tool = await self._allowed_tool(request, tool_name)
        progress = CallProgress(context.session.report_progress) if tool.streaming and context is not None else None
        answer = await self._contained(Call(tool, request, arguments, context, progress))
        if answer.is_error:
            request.fail(TOOL_ERROR)
        return answer

    async def _allowed_tool(self, request: VerifiedRequest, tool_name: str) -> Tool:
        decision = policy.decide(self._catalogue, request.claims, tool_name)
        if isinstance(decision, policy.Allowed):
            return decision.target
        denial = deny(decision, "tool", tool_name)
        raise await self.refuse(event_of(request, ACTION, tool_name, "refused", denial.reason), denial)

    async def _contained(self, call: Call) -> Answer:
        """Run a call, and let nothing that its tool raises harm another one."""
        cancellation = Cancellation()
        try:
            answer, event = await self._runner.run(call)
        except GeneratorExit:
            self._record_closed(call)
            raise
        except BaseException as error:  # noqa: BLE001 - a tool may raise anything
            if (cancelled := cancellation.within(error)) is None:
                return await self._fail(call, error)
            with anyio.CancelScope(shield=True):
                if not await self._is_committed(call):
                    await self._record_end(call.event("failed", _CLOSED))
            raise cancelled from None
        if event is None or await self._record_end(event):
            return answer
        return error_answer(unavailable(call.tool))

    async def _fail(self, call: Call, error: BaseException) -> Answer:
        """Record what ended a call, and return the answer for its caller. Raises MCPError if that is an error."""
        failure = failure_of(call.tool, call.request.request_id, call.sent, error)
        if isinstance(error, CommitUnknown) and await self._is_committed(call):
            return error_answer(failure.message)
        event = call.event(failure.outcome, failure.reason, failure.detail)
        if failure.waits:
            recorded = await self._record_end(event)
            if recorded and failure.code is not None:
                call.request.record()
                raise MCPError(failure.code, failure.message)
            return error_answer(failure.message if recorded else failure.unrecorded)
        with contextlib.suppress(AuditUnavailable):
            self._audit.record(event)
        return error_answer(failure.message)

    def _record_closed(self, call: Call) -> None:
        """Record the end of a call whose coroutine is closed, and must not await."""
        with contextlib.suppress(AuditUnavailable, SQLAlchemyError):
            if not (_commits_its_event(call.tool) and self._database.read(partial(self._find_event, call))):
                self._audit.commit(call.event("failed", _CLOSED))

    async def _is_committed(self, call: Call) -> bool:
        """Tell whether the call has changed something. Its event commits with the change."""
        if not _commits_its_event(call.tool):
            return False
        try:
            with deadline.renewed():
                return await self._database.run_read(partial(self._find_event, call))
        except SQLAlchemyError:
            return False

    def _find_event(self, call: Call, session: Session) -> bool:
        table = self._audit.rows.table
        found = select(table.c.id).where(table.c.request_id == call.request.request_id, table.c.outcome == "allowed")
        return session.execute(found).first() is not None

    async def refuse(self, event: AuditEvent, denial: Denial) -> MCPError:
        """Record a refusal, and return the error to raise."""
        error = MCPError(denial.code, denial.message, dict(denial.data) or None)
        if await self._record_end(event):
            return error
        return MCPError(json_rpc.UNAVAILABLE, f"{NOTHING_CHANGED} {UNAVAILABLE}")

    async def _record_end(self, event: AuditEvent) -> bool:
        """Return when the event is on disk: True, or False if it cannot be written."""
        try:
            await self._audit.commit_async(event)
        except AuditUnavailable:
            log.error("tool %s: %s, which cannot be recorded", event.object, event.reason)
            return False
        return True


def _commits_its_event(tool: Tool) -> bool:
    return tool.joins_transaction and not tool.read_only
