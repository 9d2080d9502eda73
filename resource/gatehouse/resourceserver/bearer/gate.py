"""The gate before the MCP endpoint: it authenticates the caller, and authorizes the operation that the body requests.

A refusal has an HTTP status, a challenge (RFC 6750 section 3.1; MCP 2026-07-28, "Error Handling") and a JSON-RPC error
that tells an agent what to do. An admitted request carries the verified claims to dispatch, which decides again.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final, NamedTuple

from gatehouse.resourceserver import json_rpc, policy
from gatehouse.resourceserver.bearer.challenge import Challenge
from gatehouse.resourceserver.bearer.jwks import KeysUnavailable
from gatehouse.resourceserver.bearer.mcp_request import (
    MAX_BODY,
    MAX_UNPROVEN_BODY,
    InvalidHeaders,
    InvalidMessage,
    McpHeaders,
    Message,
    read_headers,
    read_message,
    unknown_method_status,
)
from gatehouse.resourceserver.bearer.refusal import Cause, Received, Refused, refuse, too_many_requests, unavailable
from gatehouse.resourceserver.bearer.status import StatusUnavailable
from gatehouse.resourceserver.bearer.verified_request import VerifiedRequest
from gatehouse.resourceserver.bearer.verifier import TokenRefused, Verifier, bearer_token
from gatehouse.resourceserver.catalogue import Catalogue, Tool
from gatehouse.resourceserver.denial import Kind, deny
from gatehouse.resourceserver.http import Headers, Request, Response
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.scopes import format_scope
from gatehouse.shared.service import deadline
from gatehouse.shared.service.limits import Exceeded, InFlight, Limit
from gatehouse.shared.service.metrics import OTHER, Counter, Histogram, Series
from gatehouse.shared.service.refusals import RefusalRecorder
from gatehouse.shared.service.remediation import grant_command
from gatehouse.shared.service.requests import add_to_log, outcome_of
from gatehouse.shared.service.source_address import SourceAddresses

_LISTED_BY: Final[dict[Kind, str]] = {
    "tool": "resourceserver tools",
    "resource": "List the URIs with resources/list.",
}
"""How to see which tools and resources there are."""

_UNKNOWN: Final[dict[Kind, Cause]] = {"tool": Cause.UNKNOWN_TOOL, "resource": Cause.UNKNOWN_RESOURCE}

ABORTED: Final = "aborted"
"""The outcome and the error, for metrics, of a request without a response from here."""


class _Unauthenticated(Exception):
    """The request has no valid token. `cause` and `reason` are for the operator."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


class AdmittedRequest(NamedTuple):
    """A request that the gate let pass: its token is valid, and suffices for the operation."""

    http: Request
    body: bytes
    headers: McpHeaders
    message: Message
    verified: VerifiedRequest
    received: Received
    """For the audit event of what the SDK refuses."""


class GateMetrics(NamedTuple):
    """What the gate counts of every request, once."""

    decisions: Series[Counter]
    """By outcome, status, reason and client."""
    operations: Series[Histogram]
    """By the attributes of OpenTelemetry's `mcp.server.operation.duration`: method, tool, operation, error, version,
    transport, status code."""
    clients: Mapping[str | None, str]
    """The labels of the clients that have one."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The limits of each client."""

    calls: Limit
    """Of all requests with a valid token."""
    tool_calls: Callable[[Tool], Limit]
    """Returns the limit of the calls of a tool."""
    in_flight: InFlight
    addresses: SourceAddresses
    """For the audit events of what the limits refuse."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The MCP endpoint."""

    answer: Callable[[AdmittedRequest], Awaitable[Response | None]]
    """Answers a request that the gate let pass."""
    catalogue: Catalogue
    verifier: Verifier
    challenge: Challenge
    resource: str
    baseline: Callable[[], frozenset[str]]
    """Returns the scopes that every 401 names in addition to the operation's."""
    refusals: RefusalRecorder
    limits: CallLimits
    metrics: GateMetrics

    async def __call__(self, request: Request) -> Response | None:
        """Answer one HTTP request. Raises ClientDisconnected."""
        started = perf_counter()
        received = Received(request.request_id)
        response = None
        try:
            response = await self._answer(request, received)
            return response
        finally:
            status = response.status if response is not None else request.status
            self._count(received, status, perf_counter() - started)

    async def _answer(self, request: Request, received: Received) -> Response | None:
        try:
            admitted = await self._admit(request, received)
        except Refused as refused:
            return await refuse(self.refusals, refused, received)
        received.admitted = True
        return await self.answer(admitted)

    def _count(self, received: Received, status: int, seconds: float) -> None:
        """Count a request. `status` is 0 without a response: the client has disconnected, or an error is raised."""
        decisions, operations, clients = self.metrics
        refused, message, claims = received.refused, received.message, received.claims
        client = clients.get(claims.client_id, "") if claims is not None else ""
        if refused is not None:
            error: str | int = refused.code
            decisions[outcome_of(refused.status), status, refused.cause, client].inc()
        else:
            error = received.error or ("" if status else ABORTED)
            decisions["allowed" if received.admitted else ABORTED, status, "", client].inc()
        method = message.method if message is not None else OTHER
        tool = message.tool_name or "" if message is not None else ""
        operation = "execute_tool" if method == "tools/call" else ""
        code = error if isinstance(error, int) else ""
        operations[method, tool, operation, error, received.version, "tcp", code].observe(seconds)

    async def _admit(self, request: Request, received: Received) -> AdmittedRequest:
        """Return a permitted request. Raises Refused or ClientDisconnected."""
        try:
            claims = received.claims = await self._authenticate(request.headers, received)
            add_to_log(client_id=claims.client_id, jti=claims.jti)
            await self._limit_calls(claims.client_id, request, received)
        except (_Unauthenticated, Refused) as error:
            # The refusal needs the body: a 401 names the scopes of the operation and the JSON-RPC id, and its audit
            # event names the tool.
            unproven = await request.read_body(MAX_UNPROVEN_BODY) if request.method == "POST" else None
            if unproven is not None:
                _read(unproven, received)
            deadline.begin()
            if isinstance(error, Refused):
                raise
            raise self._unauthorized(error, received.message) from None
        try:
            body = await request.read_body(MAX_BODY)
        finally:
            # A client may take longer to send its body.
            deadline.begin()
        if body is None:
            text = f"A request is at most {MAX_BODY // 1024} KiB."
            raise Refused(Cause.TOO_LARGE, 413, json_rpc.INVALID_REQUEST, text)
        malformed = _read(body, received)
        try:
            headers = read_headers(request.method, request.headers)
        except InvalidHeaders as error:
            raise Refused(Cause.HEADERS, error.status, error.code, str(error), headers=error.headers) from None
        received.version = headers.version
        if malformed is not None or received.message is None:
            raise malformed or unavailable(Cause.MALFORMED_MESSAGE, "no message was read")
        if status := unknown_method_status(received.message, headers):
            code, text = json_rpc.METHOD_NOT_FOUND, "This server does not have the method."
            raise Refused(Cause.UNKNOWN_METHOD, status, code, text)
        tool = self._authorize(received.message, claims)
        if tool is not None:
            self._require(await self.limits.tool_calls(tool).hit(claims.client_id), request, received)
        verified = VerifiedRequest(claims, request.request_id, received.fail, received.record)
        return AdmittedRequest(request, body, headers, received.message, verified, received)

    async def _limit_calls(self, client_id: str, request: Request, received: Received) -> None:
        """Apply the limits that need no body, which takes memory and time. Raises Refused."""
        in_flight = self.limits.in_flight
        self._require(in_flight.enter(client_id), request, received)
        request.on_end = partial(in_flight.leave, client_id)
        self._require(await self.limits.calls.hit(client_id), request, received)

    def _require(self, exceeded: Exceeded | None, request: Request, received: Received) -> None:
        """Refuse a request past a limit. Raises Refused."""
        if exceeded is not None:
            peer, _ = request.scope.get("client") or ("", 0)
            forwarded_for = b",".join(request.headers.lines(b"x-forwarded-for")).decode("latin-1")
            received.address = self.limits.addresses.find(peer, forwarded_for or None)
            raise too_many_requests(exceeded)

    async def _authenticate(self, headers: Headers, received: Received) -> AccessClaims:
        """Return the claims of the token. Raises _Unauthenticated, or Refused if the token cannot be checked now."""
        sent = headers.lines(b"authorization")
        if not sent:
            raise _Unauthenticated(Cause.NO_TOKEN, "no token")
        try:
            return await self.verifier.verify(bearer_token(sent))
        except TokenRefused as error:
            received.claims = error.claims
            raise _Unauthenticated(error.cause, error.reason) from None
        except KeysUnavailable:
            raise unavailable(Cause.KEYS_UNAVAILABLE, "no key of the issuer is known", "resourceserver check") from None
        except StatusUnavailable:
            remediation = "Let this server reach the issuer's status lists; /readyz says how many are stale."
            reason = "no recent status list of the issuer is known"
            raise unavailable(Cause.STATUS_UNAVAILABLE, reason, remediation) from None

    def _unauthorized(self, error: _Unauthenticated, message: Message | None) -> Refused:
        """Return the 401, whose challenge names the scopes of the operation if its message was read."""
        scope = self._scopes_of_401(message)
        if error.cause is Cause.NO_TOKEN:
            return Refused(
                error.cause,
                401,
                json_rpc.UNAUTHENTICATED,
                "Send an access token.",
                reason=error.reason,
                headers={"WWW-Authenticate": self.challenge.no_token(scope)},
                remediation=f"Obtain a token with resource={self.resource}, then send Authorization: Bearer TOKEN.",
            )
        return Refused(
            error.cause,
            401,
            json_rpc.UNAUTHENTICATED,
            "The access token is not valid here. Obtain a new one.",
            reason=error.reason,
            headers={"WWW-Authenticate": self.challenge.invalid_token(scope)},
            data={"error": "invalid_token"},
            remediation="Obtain a new token. To see why one is not valid, run: authserver token inspect",
        )

    def _scopes_of_401(self, message: Message | None) -> frozenset[str]:
        """Return the scopes that a 401 names."""
        if message is None:
            return self.baseline()
        return self.baseline() | policy.required_scope(self.catalogue, message.tool_name, message.resource_uri)

    def _authorize(self, message: Message, claims: AccessClaims) -> Tool | None:
        """Return the tool that the message calls, if it calls one. Raises Refused."""
        if message.tool_name is not None:
            decided = policy.decide(self.catalogue, claims, message.tool_name)
            if not isinstance(decided, policy.Allowed):
                raise self._denied(decided, "tool", message.tool_name, claims)
            return decided.target
        if message.resource_uri is not None:
            read = policy.decide_read(self.catalogue, claims, message.resource_uri)
            if not isinstance(read, policy.Allowed):
                raise self._denied(read, "resource", message.resource_uri, claims)
        return None

    def _denied(self, decision: policy.Refusal, kind: Kind, name: str, claims: AccessClaims) -> Refused:
        denial = deny(decision, kind, name)
        headers: dict[str, str] = {}
        remediation = _LISTED_BY[kind]
        cause = _UNKNOWN[kind]
        if isinstance(decision, policy.Withheld):
            cause = Cause.WITHHELD_TOOL
            remediation = "resourceserver policy check"
        elif isinstance(decision, policy.Forbidden):
            cause = Cause.INSUFFICIENT_SCOPE
            headers = {"WWW-Authenticate": self.challenge.insufficient_scope(decision.scope)}
            remediation = grant_command(claims.client_id, self.resource, format_scope(decision.scope))
        return Refused(
            cause,
            denial.status,
            denial.code,
            denial.message,
            reason=denial.reason,
            headers=headers,
            data=denial.data,
            remediation=remediation,
        )


def _read(body: bytes, received: Received) -> Refused | None:
    """Parse the message. Return the error for a malformed one, which only callers with a valid token may see."""
    try:
        received.message = read_message(body)
        received.rpc_id = received.message.id
    except InvalidMessage as error:
        received.rpc_id = error.request_id
        return Refused(Cause.MALFORMED_MESSAGE, 400, error.code, str(error))
    return None
