"""Runs an allowed call: validates its arguments, runs the tool, proves the result, and records what it did.

A tool that works in the call's transaction runs in a thread, with all that belongs to the transaction: its providers,
the proof of its result, its audit event and its idempotency key. Any other tool runs in a thread if it is a plain
function, and on the event loop if it is an async function.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from mcp.server.context import ServerRequestContext
from mcp_types import CallToolResult
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from gatehouse.resourceserver.bearer.verified_request import Context, VerifiedRequest
from gatehouse.resourceserver.catalogue import Progress, ProviderCall, Tool, Transactions
from gatehouse.resourceserver.catalogue.signature import IDEMPOTENCY_KEY
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.dispatch import idempotency
from gatehouse.resourceserver.dispatch.failures import InvalidArguments
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.payload import Answer, declared_answer, explain, forwarded_answer, read_arguments
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.resourceserver.dispatch.transactions import CallTransactions
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditWriter

ACTION: Final = AuditAction.TOOL_CALL
"""The audit action of a call."""


def event_of(
    request: VerifiedRequest,
    action: AuditAction,
    object_: str,
    outcome: str,
    reason: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Return an audit event of the caller about a tool or a resource."""
    claims = request.claims
    return AuditEvent(action, outcome, claims.client_id, object_, claims.jti, request.request_id, reason, detail or {})


class Call(NamedTuple):
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
        return event_of(self.request, ACTION, self.tool.name, outcome, reason, {**self._progress(), **(objects or {})})

    def _progress(self) -> dict[str, Any]:
        # Most calls of an upstream's tools report no progress, and all of these tools can.
        if self.progress is None or (self.tool.described is not None and not self.progress.done):
            return {}
        return {"done": self.progress.done, "of": self.progress.total}

    def event_of_transaction(self, detail: Mapping[str, Any]) -> AuditEvent:
        """Return the event that commits with one transaction of a streaming tool."""
        return event_of(self.request, ACTION, self.tool.name, "allowed", None, detail)


Ended = tuple[Answer, AuditEvent | None]
"""The answer of a call, and its event if that is not recorded yet."""


class ToolRunner:
    """Runs the tools of a catalogue."""

    def __init__(
        self,
        database: RequestDatabase,
        audit: AuditWriter,
        keys: IdempotencyKeys,
        clock: Clock,
    ) -> None:
        self._database = database
        self._audit = audit
        self._keys = keys
        self._clock = clock
        self._runners: dict[str, tuple[Tool, Callable[[Call], Awaitable[Ended]]]] = {}
        """How each tool runs, by its name."""

    def _runner(self, tool: Tool) -> Callable[[Call], Awaitable[Ended]]:
        if not tool.transactional:
            return self._run_outside
        if not tool.read_only:
            return self._run_writing
        return self._run_reading if tool.joins_transaction else self._run_without_database

    async def run(self, call: Call) -> Ended:
        """Run a call.

        Raises:
            InvalidArguments: the arguments do not fit the tool's input schema.
            UnservableAnswer: the result cannot be sent.
            AuditUnavailable: the call cannot be recorded.
            BaseException: whatever the tool, a provider or the database raises.
        """
        known = self._runners.get(call.tool.name)
        if known is None or known[0] is not call.tool:
            # An upstream's tool is another one after its policy or its description has changed.
            known = self._runners[call.tool.name] = (call.tool, self._runner(call.tool))
        return await known[1](call)

    async def _run_without_database(self, call: Call) -> Ended:
        """Run a read-only tool that needs no transaction."""
        return self._record_read(call, await self._answer(call))

    async def _run_reading(self, call: Call) -> Ended:
        arguments, _ = _read(call)
        work = partial(self._answer_in_transaction, call, await self._values(call, arguments))
        return self._record_read(call, await self._database.run_read(work))

    def _record_read(self, call: Call, answer: Answer) -> Ended:
        self._audit.record(call.event(*_outcome(answer)))
        return answer, None

    async def _run_writing(self, call: Call) -> Ended:
        arguments, sent = _read(call)
        run = partial(self._answer_in_transaction, call, await self._values(call, arguments))
        record = partial(self._record_write, call)
        keyed = idempotency.keyed_call(call.request.claims, call.tool, arguments, sent)
        if keyed is not None:
            return await self._keys.run_once(keyed, run, record), None

        def write(session: Session) -> Answer:
            answer = run(session)
            record(session, answer.content or {})
            return answer

        return await self._database.run_write(write), None

    def _record_write(self, call: Call, session: Session, content: dict[str, Any], **detail: Any) -> None:
        """Record a write in its transaction: the change and its event are committed together, or neither is."""
        event = call.event("allowed", objects={**_audited(call.tool, content), **detail})
        self._audit.rows.record(session, event)

    async def _run_outside(self, call: Call) -> Ended:
        """Run a tool that changes something outside the call's transaction: in several short ones, or elsewhere."""
        answer = await self._answer(call)
        # The audit log already has the transactions of a streaming tool. This event marks the end of the call.
        return answer, call.event(*_outcome(answer), objects=_audited(call.tool, answer.content))

    def _answer_in_transaction(self, call: Call, values: Mapping[str, Any], session: Session) -> Answer:
        """Open the transactional values, and do what `_answer_in_thread` does."""
        joined = ProviderCall(call.request.claims, self._clock(), session)
        opened = {
            name: provider.open(joined)
            for name, type_ in call.tool.injected.items()
            if (provider := call.tool.providers.get(type_)) is not None and provider.transactional
        }
        return _answer_in_thread(call, {**values, **opened})

    async def _answer(self, call: Call) -> Answer:
        """Run a tool that joins no transaction."""
        values = await self._values(call, _read(call)[0])
        if call.tool.in_thread:
            return await self._database.run(partial(_answer_in_thread, call, values))
        # A tool may work for longer than its request may wait.
        with deadline.Paused():
            result = await call.tool.function(**values)
        return _proven(call, result)

    async def _values(self, call: Call, arguments: BaseModel) -> dict[str, Any]:
        """Return the parameters of the tool, without those that work in the transaction of the call."""
        values = {name: value for name, value in arguments if name != IDEMPOTENCY_KEY}
        for name, type_ in call.tool.injected.items():
            provider = call.tool.providers.get(type_)
            if provider is None:
                values[name] = self._built_in(type_, call)
            elif not provider.transactional:
                values[name] = await provider.open(ProviderCall(call.request.claims, self._clock()))
        return values

    def _built_in(self, type_: type, call: Call) -> Any:
        claims = call.request.claims
        if type_ is Transactions:
            return CallTransactions(
                self._database,
                claims,
                call.tool.providers,
                self._clock,
                self._audit.rows,
                call.event_of_transaction,
            )
        return {AccessClaims: claims, Progress: call.progress, ServerRequestContext: call.context}[type_]


def _answer_in_thread(call: Call, values: Mapping[str, Any]) -> Answer:
    """Run a plain function, and return its result as it will be sent. Raises UnservableAnswer if it cannot be."""
    with deadline.Paused():
        result = call.tool.function(**values)
    return _proven(call, result)


def _proven(call: Call, result: object) -> Answer:
    """Return a result as it will be sent. Raises UnservableAnswer if it cannot be."""
    if isinstance(result, CallToolResult) and call.tool.described is not None and call.context is not None:
        return forwarded_answer(call.tool, result, call.context.protocol_version)
    return declared_answer(call.tool, result)


def _read(call: Call) -> tuple[BaseModel, Mapping[str, Any]]:
    """Return what `read_arguments` does. Raises InvalidArguments."""
    try:
        return read_arguments(call.tool.arguments, call.sent)
    except ValidationError as error:
        raise InvalidArguments(explain(error, call.tool.input_schema)) from None


def _outcome(answer: Answer) -> tuple[str, str | None]:
    return ("failed", "the tool returned an error") if answer.is_error else ("allowed", None)


def _audited(tool: Tool, content: Any) -> dict[str, Any]:
    """Return the members of a result that the audit log keeps."""
    members = content if isinstance(content, dict) else {}
    return {name: value for name, value in members.items() if tool.is_audited(value)}
