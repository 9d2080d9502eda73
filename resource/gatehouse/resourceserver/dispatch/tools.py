"""The only way to a tool: the policy decides here again, whatever the gate decided.

The gate explains to HTTP clients what they lack. If it were missing, or misread a body, dispatch would still run only
what the policy allows.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
)
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
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
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.resourceserver.dispatch.resources import ResourceDispatch, refuse_cursor
from gatehouse.resourceserver.dispatch.transactions import CallTransactions
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.audit import AuditAction, AuditEvent
from gatehouse.shared.service.audit_writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.responses import UNAVAILABLE

CLIENT_CREDENTIALS = "io.modelcontextprotocol/oauth-client-credentials"
"""The extension that tells clients that tokens are issued without a user."""

_ACTION = AuditAction.TOOL_CALL
"""What the audit log calls what is done here."""

_NOT_NOW = f"Nothing was changed. {UNAVAILABLE}"

_NOT_ALL_NOW = f"The call may have been carried out in part. {UNAVAILABLE}"

_INSTRUCTIONS = "Tools that this client may not call are not listed."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Call:
    """An allowed call."""

    tool: Tool
    request: VerifiedRequest
    arguments: BaseModel
    sent: Mapping[str, Any]
    """The arguments before they were validated."""
    progress: CallProgress | None
    """None for a tool that is not streaming."""
    context: Context

    def event(self, outcome: str, reason: str | None = None, objects: Mapping[str, Any] | None = None) -> AuditEvent:
        """Return the event of the call's end. For a streaming tool, it has the progress that the call made."""
        came = {"done": self.progress.done, "of": self.progress.total} if self.progress is not None else {}
        return self.request.event(_ACTION, self.tool.name, outcome, reason, {**came, **(objects or {})})

    @property
    def not_now(self) -> str:
        """What the caller is told when the call cannot be finished or recorded."""
        return _NOT_NOW if self.tool.transactional else _NOT_ALL_NOW

    def event_of_transaction(self, detail: Mapping[str, Any]) -> AuditEvent:
        """Return the event that commits with one transaction of a streaming tool."""
        return self.request.event(_ACTION, self.tool.name, "allowed", None, detail)


class Dispatch:
    """Lists and calls the tools of a catalogue, for callers that the gate verified."""

    def __init__(
        self,
        catalogue: Catalogue,
        database: AsyncDatabase,
        audit: AuditWriter,
        keys: IdempotencyKeys,
        clock: Clock,
        resource: str,
    ) -> None:
        """`resource` is the identifier of this server (RFC 8707)."""
        self._catalogue = catalogue
        self._database = database
        self._audit = audit
        self._clock = clock
        self._keys = keys
        self._resources = ResourceDispatch(catalogue, resource, audit, self._refused)
        self._runners = {tool.name: self._runner(tool) for tool in catalogue.tools.values()}
        self._descriptions = {tool.name: describe_tool(tool) for tool in catalogue.tools.values()}

    def build_server(self) -> Server[Any]:
        """Return the SDK's server with our handlers. Prompts, completion and subscriptions are not served."""
        server: Server[Any] = Server(
            self._catalogue.name,
            version=version("gatehouse"),
            instructions=self._catalogue.instructions or _INSTRUCTIONS,
            get_tool_input_schema=self._input_schema,
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_list_resources=self._resources.list_resources,
            on_list_resource_templates=self._resources.list_templates,
            on_read_resource=self._resources.read_resource,
        )
        server.extensions[CLIENT_CREDENTIALS] = {}
        # OpenTelemetry's middleware: nothing exports its spans (docs/decisions/0006-sdk-internals.md).
        server.middleware.clear()
        return server

    def _input_schema(self, tool_name: str) -> dict[str, Any] | None:
        description = self._descriptions.get(tool_name)
        return description.input_schema if description is not None else None

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """List what the caller may call, in a fixed order, for the caller alone (MCP 2026-07-28, "Caching").

        Raises:
            MCPError: the request was not verified, or has a cursor, which this list never gives.
        """
        request = verified_request.require(context)
        refuse_cursor(params)
        tools = [self._descriptions[tool.name] for tool in policy.callable_tools(self._catalogue, request.claims)]
        return ListToolsResult(tools=tools, ttl_ms=0, cache_scope="private")

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Decide, validate, run, record.

        What an agent can fix is a result with `isError`: wrong arguments, or an error whose text is public.

        Raises:
            MCPError: the request was not verified, the tool is unknown, or the caller's scopes do not suffice.
        """
        request = verified_request.require(context)
        tool = await self._allowed_tool(request, params.name)
        sent = params.arguments or {}
        try:
            arguments = read_arguments(tool.arguments, sent)
        except ValidationError as error:
            return await self._failed(request.event(_ACTION, tool.name, "failed", "invalid arguments"), _explain(error))
        progress = CallProgress(context.session.report_progress) if tool.streaming else None
        return await self._run(_Call(tool, request, arguments, sent, progress, context))

    async def _allowed_tool(self, request: VerifiedRequest, tool_name: str) -> Tool:
        decision = policy.decide(self._catalogue, request.claims, tool_name)
        if isinstance(decision, policy.Allowed):
            return decision.target
        denial = deny(decision, "tool", tool_name)
        raise await self._refused(request.event(_ACTION, tool_name, "refused", denial.reason), denial)

    async def _run(self, call: _Call) -> CallToolResult:
        try:
            return await self._runners[call.tool.name](call)
        except call.tool.public_errors as error:
            return await self._failed(call.event("failed", *_for_operator(error)), str(error), call.not_now)
        except (SQLAlchemyError, AuditUnavailable) as error:
            log.error("tool %s: %s", call.tool.name, type(error).__name__)
            return _error(call.not_now)
        except Exception:
            log.exception("tool %s failed", call.tool.name)
            message = f"The tool failed. Report the request id {call.request.request_id}."
            return await self._failed(call.event("failed", "internal error"), message, call.not_now)

    def _runner(self, tool: Tool) -> Callable[[_Call], Awaitable[CallToolResult]]:
        if not tool.transactional:
            return self._run_outside
        if not tool.read_only:
            return self._run_writing
        return self._run_reading if tool.joins_transaction else self._run_alone

    async def _run_alone(self, call: _Call) -> CallToolResult:
        """Run a tool that only reads, and nothing from the database."""
        return self._read(call, _answer(await self._invoke(call, None)))

    async def _run_reading(self, call: _Call) -> CallToolResult:
        async with self._database.read() as session:
            result = _answer(await self._invoke(call, session))
        return self._read(call, result)

    def _read(self, call: _Call, result: CallToolResult) -> CallToolResult:
        self._audit.record(call.event(*_outcome(result)))
        return result

    async def _run_writing(self, call: _Call) -> CallToolResult:
        run, record = partial(self._content, call), partial(self._record, call)
        keyed = idempotency.keyed_call(call.request.claims, call.tool, call.arguments, call.sent)
        if keyed is not None:
            return _answer(await self._keys.run_once(keyed, run, record))
        async with self._database.write() as session:
            content = await run(session)
            await record(session, content)
        return _answer(content)

    async def _content(self, call: _Call, session: AsyncSession) -> dict[str, Any]:
        return (await self._invoke(call, session)).model_dump(mode="json")

    async def _record(self, call: _Call, session: AsyncSession, content: dict[str, Any], **detail: Any) -> None:
        """Record a write in its transaction: the change and its event are committed together, or neither is."""
        event = call.event("allowed", objects={**_audited(call.tool, content), **detail})
        await session.execute(self._audit.rows.insert(event))

    async def _run_outside(self, call: _Call) -> CallToolResult:
        """Run a tool whose changes are not in one transaction of the call: in several short ones, or elsewhere."""
        try:
            result = _answer(await self._invoke(call, None))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._recorded(call.event("failed", "the connection was closed before the end"))
            raise
        # The transactions of a streaming tool are in the audit log already: this event marks the end of the call.
        await self._audit.commit_async(
            call.event(*_outcome(result), objects=_audited(call.tool, result.structured_content))
        )
        return result

    async def _invoke(self, call: _Call, session: AsyncSession | None) -> BaseModel:
        injected = {name: await self._value(type_, call, session) for name, type_ in call.tool.injected.items()}
        names = type(call.arguments).model_fields.keys() - {IDEMPOTENCY_KEY}
        sent = {name: getattr(call.arguments, name) for name in names}
        return await call.tool.function(**injected, **sent)

    async def _value(self, type_: type, call: _Call, session: AsyncSession | None) -> Any:
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

    async def _failed(self, event: AuditEvent, message: str, unrecorded: str = _NOT_NOW) -> CallToolResult:
        return _error(message if await self._recorded(event) else unrecorded)

    async def _refused(self, event: AuditEvent, denial: Denial) -> MCPError:
        """Record a refusal, and return the error to raise."""
        error = MCPError(denial.code, denial.message, dict(denial.data) or None)
        return error if await self._recorded(event) else MCPError(json_rpc.UNAVAILABLE, _NOT_NOW)

    async def _recorded(self, event: AuditEvent) -> bool:
        try:
            await self._audit.commit_async(event)
        except AuditUnavailable:
            log.error("tool %s: %s, which cannot be recorded", event.object, event.reason)
            return False
        return True


def _answer(result: BaseModel | dict[str, Any]) -> CallToolResult:
    """Return what is sent for a tool's result: its JSON as text and as structure.

    The result of a tool that another server carried out is sent unchanged.
    """
    if isinstance(result, CallToolResult):
        return result
    content = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
    text = json.dumps(content, ensure_ascii=False)
    return CallToolResult(content=[TextContent(text=text)], structured_content=content)


def _outcome(result: CallToolResult) -> tuple[str, str | None]:
    return ("failed", "an error of the tool's own") if result.is_error else ("allowed", None)


def _for_operator(error: Exception) -> tuple[str, dict[str, str]]:
    """Return the reason and the detail that the audit log has of an error whose text is public."""
    # Other libraries have attributes of these names that are not texts, which the audit log could not store.
    reason, remediation = (
        value if isinstance(value := getattr(error, name, None), str) else None for name in ("reason", "remediation")
    )
    # Without a reason of its own: the text may repeat an argument.
    return reason or type(error).__name__, {"remediation": remediation} if remediation else {}


def _audited(tool: Tool, content: Any) -> dict[str, Any]:
    """Return the members of a result that the audit log keeps."""
    members = content if isinstance(content, dict) else {}
    return {name: value for name, value in members.items() if tool.is_audited(value)}


def read_arguments(model: type[BaseModel], sent: Mapping[str, Any]) -> BaseModel:
    """Return what a caller sent, as the tool takes it. Raises ValidationError."""
    # As JSON, where a date or a member of an Enum is a text; strict for the models within it, too.
    try:
        document = json.dumps(sent)
    except RecursionError:
        too_deep = InitErrorDetails(type=PydanticCustomError("too_deep", "nested too deep"), input=None)
        raise ValidationError.from_exception_data(model.__name__, [too_deep]) from None
    return model.model_validate_json(document, strict=True)


def _error(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=message)], is_error=True)


def _explain(error: ValidationError) -> str:
    """Say which argument is wrong and what it must be, without repeating its value."""
    problems = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False)[:10]:
        if problem["type"] == "extra_forbidden":
            problems.append("there is an argument that this tool does not have")
        else:
            problems.append(f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}")
    return "The arguments do not fit the tool's input schema: " + "; ".join(problems) + "."
