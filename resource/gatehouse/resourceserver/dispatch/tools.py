"""The only way to a tool: policy, validation of the arguments, transaction or idempotency key, result, audit event.

The policy decides here again, whatever the gate decided. The gate tells HTTP clients which scopes they lack. If it were
missing, or misread a body, dispatch would still run only what the policy allows.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, TextContent
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resourceserver import json_rpc, policy
from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import Context, VerifiedRequest
from gatehouse.resourceserver.catalogue import Catalogue, Progress, ProviderCall, Tool, Transactions
from gatehouse.resourceserver.catalogue.catalogue import describe_tool
from gatehouse.resourceserver.catalogue.signature import IDEMPOTENCY_KEY
from gatehouse.resourceserver.db.database import AsyncDatabase
from gatehouse.resourceserver.denial import Denial, deny
from gatehouse.resourceserver.dispatch import idempotency
from gatehouse.resourceserver.dispatch.arguments import explain, read_arguments
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.resourceserver.dispatch.resources import refuse_cursor
from gatehouse.resourceserver.dispatch.transactions import CallTransactions
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.audit import AuditAction, AuditEvent
from gatehouse.shared.service.audit_writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.responses import UNAVAILABLE

_ACTION = AuditAction.TOOL_CALL
"""The audit action of a call."""

_NOTHING_CHANGED = f"Nothing was changed. {UNAVAILABLE}"

_OUTCOME_UNKNOWN = f"The call may have been carried out in part. {UNAVAILABLE}"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Call:
    """An allowed call."""

    tool: Tool
    request: VerifiedRequest
    arguments: BaseModel
    sent: Mapping[str, Any]
    """The arguments before they were validated, with whole numbers as integers where the schema says integer."""
    progress: CallProgress | None
    """None for a tool that is not streaming."""
    context: Context

    def event(self, outcome: str, reason: str | None = None, objects: Mapping[str, Any] | None = None) -> AuditEvent:
        """Return the event of the call's end. For a streaming tool, it has the progress that the call made."""
        progress = {"done": self.progress.done, "of": self.progress.total} if self.progress is not None else {}
        return self.request.event(_ACTION, self.tool.name, outcome, reason, {**progress, **(objects or {})})

    @property
    def unavailable(self) -> str:
        """The text of the result if the call cannot be finished or recorded."""
        return _NOTHING_CHANGED if self.tool.transactional else _OUTCOME_UNKNOWN

    def event_of_transaction(self, detail: Mapping[str, Any]) -> AuditEvent:
        """Return the event that commits with one transaction of a streaming tool."""
        return self.request.event(_ACTION, self.tool.name, "allowed", None, detail)


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
        self._descriptions = {tool.name: describe_tool(tool) for tool in catalogue.tools.values()}

    def input_schema(self, tool_name: str) -> dict[str, Any] | None:
        """Return the JSON schema of a tool's arguments; None for an unknown tool."""
        description = self._descriptions.get(tool_name)
        return description.input_schema if description is not None else None

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """List the tools that the caller may call, in a fixed order. No cache may share it (MCP 2026-07-28, "Caching").

        Raises:
            MCPError: the request was not verified, or has a cursor, although the list has one page.
        """
        request = verified_request.require(context)
        refuse_cursor(params)
        tools = [self._descriptions[tool.name] for tool in policy.callable_tools(self._catalogue, request.claims)]
        return ListToolsResult(tools=tools, ttl_ms=0, cache_scope="private")

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Decide, validate, run, record.

        An error that an agent can fix is a result with `isError`: wrong arguments, or an exception with a public text.

        Raises:
            MCPError: the request was not verified, the tool is unknown, or the caller's scopes do not suffice.
        """
        request = verified_request.require(context)
        tool = await self._allowed_tool(request, params.name)
        try:
            arguments, sent = read_arguments(tool.arguments, params.arguments or {})
        except ValidationError as error:
            message = explain(error, tool.input_schema)
            return await self._failed(request.event(_ACTION, tool.name, "failed", "invalid arguments"), message)
        progress = CallProgress(context.session.report_progress) if tool.streaming else None
        return await self._run(_Call(tool, request, arguments, sent, progress, context))

    async def _allowed_tool(self, request: VerifiedRequest, tool_name: str) -> Tool:
        decision = policy.decide(self._catalogue, request.claims, tool_name)
        if isinstance(decision, policy.Allowed):
            return decision.target
        denial = deny(decision, "tool", tool_name)
        raise await self.refuse(request.event(_ACTION, tool_name, "refused", denial.reason), denial)

    async def _run(self, call: _Call) -> CallToolResult:
        try:
            return await self._runners[call.tool.name](call)
        except call.tool.public_errors as error:
            return await self._failed(call.event("failed", *_for_operator(error)), str(error), call.unavailable)
        except (SQLAlchemyError, AuditUnavailable) as error:
            log.error("tool %s: %s", call.tool.name, type(error).__name__)
            return _error(call.unavailable)
        except Exception:
            log.exception("tool %s failed", call.tool.name)
            message = f"The tool failed. Report the request id {call.request.request_id}."
            return await self._failed(call.event("failed", "internal error"), message, call.unavailable)

    def _runner(self, tool: Tool) -> Callable[[_Call], Awaitable[CallToolResult]]:
        if not tool.transactional:
            return self._run_outside
        if not tool.read_only:
            return self._run_writing
        return self._run_reading if tool.joins_transaction else self._run_without_database

    async def _run_without_database(self, call: _Call) -> CallToolResult:
        """Run a read-only tool that needs no transaction."""
        return self._record_read(call, _answer(await self._invoke(call, None)))

    async def _run_reading(self, call: _Call) -> CallToolResult:
        async with self._database.read() as session:
            result = _answer(await self._invoke(call, session))
        return self._record_read(call, result)

    def _record_read(self, call: _Call, result: CallToolResult) -> CallToolResult:
        self._audit.record(call.event(*_outcome(result)))
        return result

    async def _run_writing(self, call: _Call) -> CallToolResult:
        run, record = partial(self._content, call), partial(self._record_write, call)
        keyed = idempotency.keyed_call(call.request.claims, call.tool, call.arguments, call.sent)
        if keyed is not None:
            return _answer(await self._keys.run_once(keyed, run, record))
        async with self._database.write() as session:
            content = await run(session)
            await record(session, content)
        return _answer(content)

    async def _content(self, call: _Call, session: AsyncSession) -> dict[str, Any]:
        return (await self._invoke(call, session)).model_dump(mode="json")

    async def _record_write(self, call: _Call, session: AsyncSession, content: dict[str, Any], **detail: Any) -> None:
        """Record a write in its transaction: the change and its event are committed together, or neither is."""
        event = call.event("allowed", objects={**_audited(call.tool, content), **detail})
        await session.execute(self._audit.rows.insert(event))

    async def _run_outside(self, call: _Call) -> CallToolResult:
        """Run a tool that changes something outside the call's transaction: in several short ones, or elsewhere."""
        try:
            result = _answer(await self._invoke(call, None))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._try_record(call.event("failed", "the connection was closed before the end"))
            raise
        # The audit log already has the transactions of a streaming tool. This event marks the end of the call.
        await self._audit.commit_async(
            call.event(*_outcome(result), objects=_audited(call.tool, result.structured_content))
        )
        return result

    async def _invoke(self, call: _Call, session: AsyncSession | None) -> BaseModel:
        injected = {name: await self._inject(type_, call, session) for name, type_ in call.tool.injected.items()}
        names = type(call.arguments).model_fields.keys() - {IDEMPOTENCY_KEY}
        sent = {name: getattr(call.arguments, name) for name in names}
        return await call.tool.function(**injected, **sent)

    async def _inject(self, type_: type, call: _Call, session: AsyncSession | None) -> Any:
        """Return the value of an injected parameter."""
        tool, claims = call.tool, call.request.claims
        if (provider := tool.providers.get(type_)) is not None:
            transaction = session if provider.transactional else None
            return await provider.open(ProviderCall(claims, self._clock(), transaction))
        if type_ is Transactions:
            return CallTransactions(
                self._database, claims, tool.providers, self._clock, self._audit.rows, call.event_of_transaction
            )
        return {AccessClaims: claims, Progress: call.progress, ServerRequestContext: call.context}[type_]

    async def _failed(self, event: AuditEvent, message: str, unrecorded: str = _NOTHING_CHANGED) -> CallToolResult:
        return _error(message if await self._try_record(event) else unrecorded)

    async def refuse(self, event: AuditEvent, denial: Denial) -> MCPError:
        """Record a refusal, and return the error to raise."""
        error = MCPError(denial.code, denial.message, dict(denial.data) or None)
        return error if await self._try_record(event) else MCPError(json_rpc.UNAVAILABLE, _NOTHING_CHANGED)

    async def _try_record(self, event: AuditEvent) -> bool:
        """Return when the event is on disk: True, or False if it cannot be written."""
        try:
            await self._audit.commit_async(event)
        except AuditUnavailable:
            log.error("tool %s: %s, which cannot be recorded", event.object, event.reason)
            return False
        return True


def _answer(result: BaseModel | dict[str, Any]) -> CallToolResult:
    """Return the response for a tool's result: its JSON, both as text and as structured content.

    The result of an SDK server's tool is sent unchanged.
    """
    if isinstance(result, CallToolResult):
        return result
    content = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
    text = json.dumps(content, ensure_ascii=False)
    return CallToolResult(content=[TextContent(text=text)], structured_content=content)


def _outcome(result: CallToolResult) -> tuple[str, str | None]:
    return ("failed", "the tool returned an error") if result.is_error else ("allowed", None)


def _audited(tool: Tool, content: Any) -> dict[str, Any]:
    """Return the members of a result that the audit log keeps."""
    members = content if isinstance(content, dict) else {}
    return {name: value for name, value in members.items() if tool.is_audited(value)}


def _for_operator(error: Exception) -> tuple[str, dict[str, str]]:
    """Return the reason and the detail that the audit log keeps of an error whose text is public."""
    # Other libraries have attributes of these names that are not texts, which the audit log could not store.
    reason, remediation = (
        value if isinstance(value := getattr(error, name, None), str) else None for name in ("reason", "remediation")
    )
    # Not the text, because it may repeat an argument.
    return reason or type(error).__name__, {"remediation": remediation} if remediation else {}


def _error(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=message)], is_error=True)
