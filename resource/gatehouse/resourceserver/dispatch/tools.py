"""The only way to a tool: policy, validation of the arguments, transaction or idempotency key, result, audit event.

The policy decides here again, whatever the gate decided. The gate tells HTTP clients which scopes they lack. If it were
missing, or misread a body, dispatch would still run only what the policy allows.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resourceserver import json_rpc, policy
from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import Context, VerifiedRequest
from gatehouse.resourceserver.catalogue import Catalogue, Progress, ProviderCall, Tool, Transactions
from gatehouse.resourceserver.catalogue.signature import IDEMPOTENCY_KEY
from gatehouse.resourceserver.db.database import AsyncDatabase, CommitUnknown
from gatehouse.resourceserver.denial import Denial, deny
from gatehouse.resourceserver.dispatch import idempotency
from gatehouse.resourceserver.dispatch.containment import Cancellation
from gatehouse.resourceserver.dispatch.failures import NOTHING_CHANGED, InvalidArguments, failure_of, unavailable
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.payload import (
    declared_answer,
    error_answer,
    explain,
    forwarded_answer,
    kept_answer,
    read_arguments,
)
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.resourceserver.dispatch.resources import refuse_cursor
from gatehouse.resourceserver.dispatch.transactions import CallTransactions
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit import AuditAction, AuditEvent
from gatehouse.shared.service.audit_writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.responses import UNAVAILABLE

_ACTION = AuditAction.TOOL_CALL
"""The audit action of a call."""

_CLOSED = "the connection was closed before the end"
"""The reason in the audit log of a call that was cancelled."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Call:
    """An allowed call."""

    tool: Tool
    request: VerifiedRequest
    sent: Mapping[str, Any]
    """The arguments before they are validated."""
    context: Context | None
    """The SDK's context of the request. None only for a tool that does not need it."""
    progress: CallProgress | None
    """None for a tool that is not streaming."""

    def event(self, outcome: str, reason: str | None = None, objects: Mapping[str, Any] | None = None) -> AuditEvent:
        """Return the event of the call's end. For a streaming tool, it has the progress that the call made."""
        progress = {"done": self.progress.done, "of": self.progress.total} if self.progress is not None else {}
        return self.request.event(_ACTION, self.tool.name, outcome, reason, {**progress, **(objects or {})})

    def event_of_transaction(self, detail: Mapping[str, Any]) -> AuditEvent:
        """Return the event that commits with one transaction of a streaming tool."""
        return self.request.event(_ACTION, self.tool.name, "allowed", None, detail)


_Ended = tuple[CallToolResult, AuditEvent | None]
"""The answer of a call, and its event if that is not recorded yet."""


class ToolDispatch:
    """Lists and calls the tools of a catalogue, for callers that the gate verified."""

    def __init__(
        self,
        catalogue: Catalogue,
        database: AsyncDatabase,
        audit: AuditWriter,
        keys: IdempotencyKeys,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._database = database
        self._audit = audit
        self._clock = clock
        self._keys = keys
        self._runners = {tool.name: self._runner(tool) for tool in catalogue.tools.values()}

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
        return await self.call(verified_request.require(context), params.name, params.arguments or {}, context)

    async def call(
        self, request: VerifiedRequest, tool_name: str, arguments: Mapping[str, Any], context: Context | None = None
    ) -> CallToolResult:
        """Decide, validate, run, record.

        An error that an agent can fix is a result with `isError`: wrong arguments, or an exception with a public text.

        Args:
            request: the verified request.
            tool_name: the tool, as the caller named it.
            arguments: the arguments, as the caller sent them.
            context: the SDK's context of the request. A tool whose `needs_context` is set cannot be called without it.

        Raises:
            MCPError: the tool is unknown, or the caller's scopes do not suffice.
        """
        tool = await self._allowed_tool(request, tool_name)
        progress = CallProgress(context.session.report_progress) if tool.streaming and context is not None else None
        return await self._contained(_Call(tool, request, arguments, context, progress))

    async def _allowed_tool(self, request: VerifiedRequest, tool_name: str) -> Tool:
        decision = policy.decide(self._catalogue, request.claims, tool_name)
        if isinstance(decision, policy.Allowed):
            return decision.target
        denial = deny(decision, "tool", tool_name)
        raise await self.refuse(request.event(_ACTION, tool_name, "refused", denial.reason), denial)

    async def _contained(self, call: _Call) -> CallToolResult:
        """Run a call, and let nothing that its tool raises harm another one."""
        cancellation = Cancellation()
        try:
            result, event = await self._runners[call.tool.name](call)
        except GeneratorExit:
            # The coroutine is closed, and must not wait.
            with contextlib.suppress(AuditUnavailable):
                self._audit.commit(call.event("failed", _CLOSED))
            raise
        except BaseException as error:  # noqa: BLE001 - a tool may raise anything
            if (cancelled := cancellation.within(error)) is None:
                return await self._fail(call, error)
            with anyio.CancelScope(shield=True):
                if not await self._is_committed(call):
                    await self._record_end(call.event("failed", _CLOSED))
            raise cancelled from None
        if event is None or await self._record_end(event):
            return result
        return error_answer(unavailable(call.tool))

    def _runner(self, tool: Tool) -> Callable[[_Call], Awaitable[_Ended]]:
        if not tool.transactional:
            return self._run_outside
        if not tool.read_only:
            return self._run_writing
        return self._run_reading if tool.joins_transaction else self._run_without_database

    async def _run_without_database(self, call: _Call) -> _Ended:
        """Run a read-only tool that needs no transaction."""
        return self._record_read(call, await self._answer(call, _read(call)[0], None))

    async def _run_reading(self, call: _Call) -> _Ended:
        arguments, _ = _read(call)
        async with self._database.read() as session:
            result = await self._answer(call, arguments, session)
        return self._record_read(call, result)

    def _record_read(self, call: _Call, result: CallToolResult) -> _Ended:
        self._audit.record(call.event(*_outcome(result)))
        return result, None

    async def _run_writing(self, call: _Call) -> _Ended:
        arguments, sent = _read(call)
        run, record = partial(self._content, call, arguments), partial(self._record_write, call)
        keyed = idempotency.keyed_call(call.request.claims, call.tool, arguments, sent)
        if keyed is not None:
            return kept_answer(await self._keys.run_once(keyed, run, record)), None
        async with self._database.write() as session:
            result = await self._answer(call, arguments, session)
            await record(session, result.structured_content or {})
        return result, None

    async def _content(self, call: _Call, arguments: BaseModel, session: AsyncSession) -> dict[str, Any]:
        return (await self._answer(call, arguments, session)).structured_content or {}

    async def _record_write(self, call: _Call, session: AsyncSession, content: dict[str, Any], **detail: Any) -> None:
        """Record a write in its transaction: the change and its event are committed together, or neither is."""
        event = call.event("allowed", objects={**_audited(call.tool, content), **detail})
        await session.execute(self._audit.rows.insert(event))

    async def _run_outside(self, call: _Call) -> _Ended:
        """Run a tool that changes something outside the call's transaction: in several short ones, or elsewhere."""
        result = await self._answer(call, _read(call)[0], None)
        # The audit log already has the transactions of a streaming tool. This event marks the end of the call.
        return result, call.event(*_outcome(result), objects=_audited(call.tool, result.structured_content))

    async def _answer(self, call: _Call, arguments: BaseModel, session: AsyncSession | None) -> CallToolResult:
        """Run the tool, and return its result as it will be sent. Raises UnservableAnswer if it cannot be."""
        result = await self._invoke(call, arguments, session)
        if isinstance(result, CallToolResult) and call.tool.described is not None and call.context is not None:
            return forwarded_answer(call.tool, result, call.context.protocol_version)
        return declared_answer(call.tool, result)

    async def _invoke(self, call: _Call, arguments: BaseModel, session: AsyncSession | None) -> BaseModel:
        injected = {name: await self._inject(type_, call, session) for name, type_ in call.tool.injected.items()}
        names = type(arguments).model_fields.keys() - {IDEMPOTENCY_KEY}
        sent = {name: getattr(arguments, name) for name in names}
        # A tool may work for longer than its request may wait.
        with deadline.paused():
            return await call.tool.function(**injected, **sent)

    async def _inject(self, type_: type, call: _Call, session: AsyncSession | None) -> Any:
        """Return the value of an injected parameter."""
        tool, claims = call.tool, call.request.claims
        if (provider := tool.providers.get(type_)) is not None:
            now = self._clock()
            joined = session if provider.transactional else None
            opened = ProviderCall(claims, now) if joined is None else ProviderCall(claims, now, joined)
            return await provider.open(opened)
        if type_ is Transactions:
            return CallTransactions(
                self._database, claims, tool.providers, self._clock, self._audit.rows, call.event_of_transaction
            )
        return {AccessClaims: claims, Progress: call.progress, ServerRequestContext: call.context}[type_]

    async def _fail(self, call: _Call, error: BaseException) -> CallToolResult:
        """Record what ended a call, and return the answer for its caller."""
        failure = failure_of(call.tool, call.request.request_id, call.sent, error)
        if isinstance(error, CommitUnknown) and await self._is_committed(call):
            return error_answer(failure.message)
        event = call.event("failed", failure.reason, failure.detail)
        if failure.waits:
            return error_answer(failure.message if await self._record_end(event) else failure.unrecorded)
        with contextlib.suppress(AuditUnavailable):
            self._audit.record(event)
        return error_answer(failure.message)

    async def _is_committed(self, call: _Call) -> bool:
        """Tell whether the audit log says that the call changed something. Its event commits with the change."""
        if call.tool.read_only or not call.tool.joins_transaction:
            return False
        table = self._audit.rows.table
        found = select(table.c.id).where(table.c.request_id == call.request.request_id, table.c.outcome == "allowed")
        try:
            async with self._database.read() as session:
                return (await session.execute(found)).first() is not None
        except SQLAlchemyError:
            return False

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


def _read(call: _Call) -> tuple[BaseModel, Mapping[str, Any]]:
    """Return what `read_arguments` does. Raises InvalidArguments."""
    try:
        return read_arguments(call.tool.arguments, call.sent)
    except ValidationError as error:
        raise InvalidArguments(explain(error, call.tool.input_schema)) from None


def _outcome(result: CallToolResult) -> tuple[str, str | None]:
    return ("failed", "the tool returned an error") if result.is_error else ("allowed", None)


def _audited(tool: Tool, content: Any) -> dict[str, Any]:
    """Return the members of a result that the audit log keeps."""
    members = content if isinstance(content, dict) else {}
    return {name: value for name, value in members.items() if tool.is_audited(value)}
