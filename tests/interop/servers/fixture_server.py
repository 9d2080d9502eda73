"""The server that the official conformance suite expects: its fixture tools, on the Python SDK.

    fixture_server.py stdio
    fixture_server.py PORT [--only VERSION] [--stateless]

It serves 2025-11-25 and 2026-07-28. With `--only` it refuses the other one, like a server on an SDK of that time.
"""

import argparse
import io
import logging
import wave
from base64 import b64decode
from typing import Annotated, Any

import anyio
import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.types import Audio
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    EmptyResult,
    InputRequest,
    InputRequiredResult,
    JSONRPCMessage,
    ListRootsRequest,
    SamplingMessage,
    SetLevelRequestParams,
    TextContent,
    TextResourceContents,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import Field
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEGACY, MODERN = "2025-11-25", "2026-07-28"
RETRY_MS = 100
"""After how many milliseconds a client resumes a stream that the server closed."""
BODY_BEGUN = "body_begun"
"""The key in the ASGI scope of the event that is set once the response has sent the first part of its body."""

PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")

JSON_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
TITLED = [{"const": f"value{number}", "title": f"Choice {number}"} for number in (1, 2, 3)]
OPTIONS = ["option1", "option2", "option3"]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option 1", "Option 2"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}


def json_schema_2020_12_tool() -> str:
    """Tool with JSON Schema 2020-12 features."""
    return "The schema is what matters."


server = MCPServer(
    "fixture",
    version="1",
    tools=[Tool.from_function(json_schema_2020_12_tool).model_copy(update={"parameters": JSON_SCHEMA})],
    log_level="WARNING",
)


@server.tool()
def test_simple_text() -> str:
    """Return a text."""
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> Image:
    """Return an image."""
    return Image(data=PIXEL, format="png")


@server.tool()
def test_audio_content() -> Audio:
    """Return a sound."""
    silence = io.BytesIO()
    with wave.open(silence, "wb") as sound:
        sound.setparams((1, 1, 8000, 8, "NONE", ""))
        sound.writeframes(b"\x80" * 8)
    return Audio(data=silence.getvalue(), format="wav")


def _embedded(name: str, mime_type: str, text: str) -> EmbeddedResource:
    contents = TextResourceContents(uri=f"test://{name}", mime_type=mime_type, text=text)
    return EmbeddedResource(type="resource", resource=contents)


@server.tool()
def test_embedded_resource() -> EmbeddedResource:
    """Return a resource within the result."""
    return _embedded("embedded-resource", "text/plain", "This is an embedded resource content.")


@server.tool()
def test_multiple_content_types() -> list[TextContent | Image | EmbeddedResource]:
    """Return a text, an image and a resource."""
    return [
        TextContent(type="text", text="Multiple content types test:"),
        Image(data=PIXEL, format="png"),
        _embedded("mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ]


@server.tool()
def test_error_handling() -> str:
    """Fail."""
    raise RuntimeError("This tool intentionally returns an error for testing")


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Report progress three times."""
    for percent in (0, 50, 100):
        await ctx.report_progress(percent, 100, f"{percent} of 100")
    return "Done."


@server.tool(name="test_logging_tool")
@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Send three log messages."""
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(text)
    return "Done."


@server.tool()
def test_custom_header(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
    """Return the region, which a header repeats."""
    return region


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Close the stream of the response before the result, if the client can resume it."""
    if ctx.request_context.close_sse_stream:
        # A client resumes a stream after its first event. The SDK would close the stream before that event is sent.
        await ctx.request_context.request.scope[BODY_BEGUN].wait()
        await ctx.close_sse_stream()
    return "Done."


@server.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """Announce that the list of tools has changed."""
    await ctx.notify_tools_changed()
    return "Done."


@server.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """Announce that the list of prompts has changed."""
    await ctx.notify_prompts_changed()
    return "Done."


# Tools that send a request to the client during the call: until 2025-11-25.


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Ask the client's model."""
    answer = await ctx.session.create_message(
        [SamplingMessage(role="user", content=TextContent(type="text", text=prompt))],
        max_tokens=100,
        related_request_id=ctx.request_id,
    )
    return f"LLM response: {answer.content}"


async def _elicited(ctx: Context, message: str, properties: dict[str, Any], *required: str) -> str:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    answer = await ctx.session.elicit_form(message, schema, ctx.request_id)
    return f"User response: action={answer.action}, content={answer.content}"


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Ask the user for a name and an address."""
    texts = {name: {"type": "string"} for name in ("username", "email")}
    return await _elicited(ctx, message, texts, "username", "email")


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Ask the user for values that have defaults (SEP-1034)."""
    return await _elicited(ctx, "Confirm the defaults", DEFAULTS)


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Ask the user to choose, in every form of choice (SEP-1330)."""
    return await _elicited(ctx, "Choose", ENUMS)


# Tools whose result asks for input, so that the client repeats the call with it: from 2026-07-28 on (SEP-2322).


def _question(message: str, field: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _prompt(text: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=100))


def _missing(ctx: Context, state: str | None = None, **requests: InputRequest) -> InputRequiredResult | None:
    """Return the requests if the client has not answered all of them yet. The SDK seals the state and opens it."""
    if requests.keys() <= (ctx.input_responses or {}).keys() and ctx.request_state == state:
        return None
    return InputRequiredResult(input_requests=requests, request_state=state)


@server.tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Ask the user for a name."""
    return _missing(ctx, user_name=_question("What is your name?", "name")) or "Hello!"


@server.tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Report progress, then ask the user for a name."""
    await ctx.report_progress(1, 2)
    return _missing(ctx, user_name=_question("What is your name?", "name")) or "Hello!"


@server.tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Ask the client's model for a capital."""
    return _missing(ctx, capital_question=_prompt("What is the capital of France?")) or "Thank you."


@server.tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Ask the client for its roots."""
    return _missing(ctx, client_roots=ListRootsRequest()) or "Thank you."


@server.tool(name="test_input_required_result_tampered_state")
@server.tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Ask the user for a confirmation, with a state that the client sends back."""
    return _missing(ctx, "asked", confirm=_question("Please confirm", "ok", "boolean")) or "state-ok"


@server.tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Ask the user, the client's model and the client at once."""
    missing = _missing(
        ctx,
        "asked",
        user_name=_question("What is your name?", "name"),
        greeting=_prompt("Generate a greeting"),
        client_roots=ListRootsRequest(),
    )
    return missing or "Thank you."


@server.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Ask the user for a name, then for a color."""
    color = {"step2": _question("Step 2: your favorite color?", "color")}
    if ctx.request_state == "step 2":
        return _missing(ctx, "step 2", **color) or "Thank you."
    missing = _missing(ctx, "step 1", step1=_question("Step 1: your name?", "name"))
    return missing or InputRequiredResult(input_requests=color, request_state="step 2")


@server.tool()
async def test_input_required_result_capabilities(ctx: Context) -> str | InputRequiredResult:
    """Ask only for what the client can answer."""
    declared, requests = ctx.client_capabilities, {}
    if declared and declared.sampling is not None:
        requests["greeting"] = _prompt("Generate a greeting")
    if declared and declared.elicitation is not None:
        requests["user_name"] = _question("What is your name?", "name")
    return _missing(ctx, **requests) if requests else "There is nothing to ask."


@server.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Refuse clients without a model."""
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        raise MCPError(
            code=MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="This tool needs the capability sampling",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return "The client has a model."


async def _set_level(_: Any, __: SetLevelRequestParams) -> EmptyResult:
    return EmptyResult()


# MCPServer has no public way to serve it.
server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, _set_level)


class Events(EventStore):
    """The events of all streams, so that a client can resume a stream (until 2025-11-25)."""

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        last = int(last_event_id)
        resumed, _ = self._events[last - 1]
        for number, (stream, message) in enumerate(self._events[last:], last + 1):
            if stream == resumed and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return resumed


def announcing(app: ASGIApp) -> ASGIApp:
    """Set the event under `BODY_BEGUN` in the scope of each request."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        scope[BODY_BEGUN] = begun = anyio.Event()

        async def announce(message: Message) -> None:
            await send(message)
            if message.get("body"):
                begun.set()

        await app(scope, receive, announce)

    return serve


def only(version: str, app: ASGIApp) -> ASGIApp:
    """Refuse the other version, as servers on the SDKs of that version do."""
    if version == MODERN:
        code, text = -32022, "Unsupported protocol version"
    else:
        code, text = -32000, f"Bad Request: Unsupported protocol version (supported versions: {LEGACY}, 2025-06-18)"

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        named = dict(scope.get("headers", ())).get(b"mcp-protocol-version", b"").decode()
        legacy = named in {"", *HANDSHAKE_PROTOCOL_VERSIONS}
        if scope["type"] == "http" and legacy == (version == MODERN):
            data = {"data": {"supported": [MODERN], "requested": named}} if version == MODERN else {}
            refusal = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": text, **data}}
            await JSONResponse(refusal, 400)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


def main() -> None:
    """Serve until SIGTERM, or until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", help="a port of 127.0.0.1, or stdio")
    parser.add_argument("--only", choices=[LEGACY, MODERN])
    parser.add_argument("--stateless", action="store_true", help="2025-11-25 without sessions")
    options = parser.parse_args()
    if options.port == "stdio":
        # The gateway logs standard error, and its log must have no traceback, such as of a tool that fails on purpose.
        logging.disable()
        server.run("stdio")
        return
    resumable = {} if options.stateless else {"event_store": Events(), "retry_interval": RETRY_MS}
    app = announcing(server.streamable_http_app(stateless_http=options.stateless, **resumable))
    if options.only:
        app = only(options.only, app)
    uvicorn.run(app, port=int(options.port), log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
