"""Whatever a tool raises fails its own call only, and leaves an audit event with the reason."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from mcp.server.mcpserver import MCPServer
from pydantic import AfterValidator, BaseModel, field_serializer
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server
from support.streaming import streamed, tool_request

from gatehouse.resourceserver.catalogue import (
    ANY_VALID_TOKEN,
    Catalogue,
    Progress,
    ProviderCall,
    Scope,
    ToolFailed,
    ToolGroup,
    provider,
)
from gatehouse.resourceserver.catalogue.mcpserver import guarded_catalogue
from gatehouse.resourceserver.dispatch.containment import Cancellation, contain, name_of

pytestmark = [pytest.mark.anyio, pytest.mark.both_ways]

VERSIONS = ["2025-11-25", "2026-07-28"]


class Panic(BaseException):
    """As pyo3_runtime.PanicException, which a panic in a Rust extension raises."""


class Unprintable(ToolFailed):
    """An exception that fails to say what it is."""

    def __str__(self) -> str:
        raise Panic("secret")


async def cancelled_elsewhere() -> None:
    """Await something that another task cancels, as an MCP client does whose server is away."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


RAISED: dict[str, Callable[[], BaseException]] = {
    "Panic": lambda: Panic("secret"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("secret"),
    "CancelledError": lambda: asyncio.CancelledError("secret"),
    "BaseExceptionGroup of Panic, SystemExit": lambda: BaseExceptionGroup(
        "secret", [SystemExit(3), BaseExceptionGroup("secret", [Panic("secret")])]
    ),
    "RuntimeError": lambda: RuntimeError("secret"),
}
"""What is raised, by its name in the audit log."""


WITHOUT_MEANING: dict[str, Callable[[], BaseException]] = {
    "GeneratorExit": lambda: GeneratorExit("secret"),
    "StopIteration": lambda: StopIteration("secret"),
}
"""What has a meaning in a coroutine and none in a plain function."""


def fail(kind: str) -> str:
    if kind in RAISED or kind in WITHOUT_MEANING:
        error = {**RAISED, **WITHOUT_MEANING}[kind]()
        raise error
    return kind


class Text(BaseModel):
    """The result of the tools."""

    text: str


class Fragile(BaseModel):
    """A result whose serializer raises."""

    kind: str

    @field_serializer("kind")
    def serialized(self, kind: str) -> str:
        return fail(kind)


class Desk:
    """What a provider makes."""


class Ledger:
    """What a transactional provider makes."""


async def read(kind: str) -> Text:
    """Raise in a tool that only reads."""
    return Text(text=fail(kind))


async def write(kind: str) -> Text:
    """Raise in a tool that writes elsewhere."""
    return Text(text=fail(kind))


def read_plainly(kind: str) -> Text:
    """Raise in a thread, without a transaction."""
    return Text(text=fail(kind))


def write_plainly(kind: str) -> Text:
    """Raise in a thread, and write elsewhere."""
    return Text(text=fail(kind))


def write_ledger(ledger: Ledger, kind: str) -> Text:
    """Raise within a transaction."""
    return Text(text=fail(kind))


def read_ledger(ledger: Ledger, kind: str) -> Text:
    """Raise within a transaction that reads."""
    return Text(text=fail(kind))


async def stream(progress: Progress, kind: str) -> Text:
    """Raise after the first notification."""
    await progress.report(1, 2)
    return Text(text=fail(kind))


async def use_desk(desk: Desk, kind: str) -> Text:
    """Use what a provider makes."""
    return Text(text=kind)


async def serialize(kind: str) -> Fragile:
    """Return what raises when it is serialized."""
    return Fragile(kind=kind)


async def validate(kind: Annotated[str, AfterValidator(fail)]) -> Text:
    """Have an argument whose validator raises."""
    return Text(text=kind)


async def wait_for_another() -> Text:
    """Wait for a task that is cancelled."""
    await cancelled_elsewhere()
    return Text(text="x")


async def unprintable() -> Text:
    """Raise an exception with a broken text."""
    raise Unprintable("secret")


async def give_up() -> Text:
    """Use up the time that the tool allows itself."""
    try:
        async with asyncio.timeout(0):
            await anyio.sleep_forever()
    except TimeoutError:
        await cancelled_elsewhere()
    return Text(text="x")


class Running:
    """A call that is in flight while another one fails."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.finish = anyio.Event()
        self.provided = ""

    async def wait(self) -> Text:
        """Wait until the test lets the call end."""
        self.begun.set()
        await self.finish.wait()
        return Text(text="waited")


class Catalogues:
    """The tools. Building a catalogue is slow, so all tests share them; each test has its own call in flight."""

    running: Running

    @cached_property
    def own(self) -> Catalogue:
        @provider()
        async def open_desk(_: ProviderCall) -> Desk:
            fail(self.running.provided)
            return Desk()

        @provider(transactional=True)
        def open_ledger(_: ProviderCall) -> Ledger:
            return Ledger()

        async def wait() -> Text:
            """Wait."""
            return await self.running.wait()

        reading = (wait, read, read_ledger, use_desk, serialize, validate, wait_for_another, give_up)
        reading += (read_plainly,)
        group = ToolGroup()
        for tool in reading:
            group.tool(scopes=ANY_VALID_TOKEN, read_only=True)(tool)
        for tool in (write, write_plainly, write_ledger, unprintable):
            group.tool(scopes=ANY_VALID_TOKEN)(tool)
        group.tool(scopes=ANY_VALID_TOKEN, streaming=True)(stream)
        providers: dict[type, Any] = {Desk: open_desk, Ledger: open_ledger}
        return Catalogue("test", [Scope("a:b", "Nothing")], [group], providers=providers)

    @cached_property
    def guarded(self) -> Catalogue:
        server: MCPServer[Any] = MCPServer("guarded")

        @server.tool()
        async def wait() -> str:
            return (await self.running.wait()).text

        @server.tool()
        async def asynchronous(kind: str) -> str:
            return fail(kind)

        @server.tool()
        def synchronous(kind: str) -> str:
            return fail(kind)

        tools = dict.fromkeys(("wait", "asynchronous", "synchronous"), ANY_VALID_TOKEN)
        return guarded_catalogue(server, scopes=tools, declared=[Scope("a:b", "Nothing")])


CATALOGUES = Catalogues()


@pytest.fixture
def running(anyio_backend: str) -> Running:
    CATALOGUES.running = Running()
    return CATALOGUES.running


@pytest.fixture(params=["own", "guarded"])
async def server(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    resourceserver_template: Template,
    clock: FakeClock,
    running: Running,
) -> AsyncIterator[ResourceServer]:
    catalogue = CATALOGUES.own if request.param == "own" else CATALOGUES.guarded
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, catalogue) as server:
        yield server


async def call(server: ResourceServer, version: str, tool: str, **arguments: str) -> dict[str, Any]:
    """Return the result of a call, and the request id of its audit events."""
    progress_token = "p" if tool == "stream" else None
    body, headers = tool_request(version, tool, arguments, progress_token)
    with anyio.fail_after(20):
        async with streamed(server.app, body, headers, server.issuer.token("a:b")) as stream:
            assert stream.status == 200
            streams = stream.headers["content-type"] == "text/event-stream"
            last = [event async for event in stream.events()][-1] if streams else await stream.body()
            return {**last["result"], "request_id": stream.headers["x-request-id"]}


async def events_of(server: ResourceServer, request_id: str) -> list[tuple[str, str | None]]:
    """Return outcome and reason of the events of a call."""
    # The refusal is on disk after everything that was recorded before.
    await server.call("no_such_tool", server.issuer.token("a:b"))
    return [(event["outcome"], event["reason"]) for event in server.audit(request_id=request_id)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("server", "tool"),
    [
        *(("own", name) for name in ("read", "write", "read_ledger", "write_ledger", "stream", "validate")),
        *(("own", name) for name in ("use_desk", "serialize", "read_plainly", "write_plainly")),
        *(("guarded", name) for name in ("asynchronous", "synchronous")),
    ],
    indirect=["server"],
)
async def test_whatever_a_tool_raises_fails_its_own_call_only(
    server: ResourceServer, running: Running, version: str, tool: str
) -> None:
    other: list[dict[str, Any]] = []

    async def keep_waiting() -> None:
        other.append(await call(server, version, "wait"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_waiting)
        await running.begun.wait()
        assert not (await call(server, version, tool, kind="fine"))["isError"]
        for kind in RAISED:
            running.provided = kind if tool == "use_desk" else ""
            result = await call(server, version, tool, kind=kind)
            assert result["isError"], kind
            assert "secret" not in str(result)
            assert result["request_id"] in str(result["content"])
            ((outcome, reason),) = await events_of(server, result["request_id"])
            assert outcome == "failed"
            if tool == "serialize":
                assert reason is not None
                assert reason.startswith("the result cannot be sent: Its serializer raised")
            elif server.services.catalogue.name == "guarded" and kind == "RuntimeError":
                assert reason == "internal error: UnexpectedToolError from RuntimeError"
            else:
                assert reason == f"internal error: {kind}"
        running.provided = ""
        assert not (await call(server, version, tool, kind="fine"))["isError"]
        assert other == []
        running.finish.set()
    assert not other[0]["isError"]
    assert (await server.http.get("https://mcp.example.com/readyz")).status_code == 200


@pytest.mark.parametrize("server", ["own"], indirect=True)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("tool", "reason"),
    [("wait_for_another", "CancelledError"), ("give_up", "CancelledError"), ("unprintable", "Panic")],
)
async def test_a_foreign_cancellation_is_a_failure_of_the_tool(
    server: ResourceServer, version: str, tool: str, reason: str
) -> None:
    result = await call(server, version, tool)
    assert result["isError"]
    assert await events_of(server, result["request_id"]) == [("failed", f"internal error: {reason}")]


@pytest.mark.parametrize("server", ["own"], indirect=True)
@pytest.mark.parametrize("kind", WITHOUT_MEANING)
async def test_generator_exit_or_stop_iteration_fails_the_call_of_a_plain_tool(
    server: ResourceServer, kind: str
) -> None:
    for tool in ("read_plainly", "write_ledger"):
        result = await call(server, "2026-07-28", tool, kind=kind)
        assert result["isError"]
        assert await events_of(server, result["request_id"]) == [
            ("failed", f"internal error: RuntimeError from {kind}")
        ]


async def test_a_cancellation_is_the_calls_only_if_its_task_was_cancelled() -> None:
    cancellation = Cancellation()
    error = asyncio.CancelledError()
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [error])])
    task = asyncio.current_task()
    assert task is not None
    assert cancellation.within(error) is None
    task.cancel()
    assert cancellation.within(error) is error
    assert cancellation.within(group) is error
    assert cancellation.within(ValueError()) is None
    task.uncancel()
    assert cancellation.within(group) is None
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)


def test_the_name_of_an_exception_has_no_text() -> None:
    assert name_of(ValueError("secret")) == "ValueError"
    assert (
        name_of(ExceptionGroup("secret", [ValueError("secret"), KeyError()]))
        == "ExceptionGroup of KeyError, ValueError"
    )


# The last line of defence


async def through_the_middleware(error: BaseException) -> Any:
    async def handler(_: Any) -> dict[str, Any]:
        raise error

    class Context:
        method = "tools/list"
        request = None

    return await contain(Context(), handler)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [Panic(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
async def test_no_handler_can_end_the_session_manager(error: BaseException) -> None:
    with pytest.raises(Exception, match="cannot process this request now"):
        await through_the_middleware(error)


async def test_an_error_that_the_sdk_answers_passes_the_middleware() -> None:
    with pytest.raises(ValueError, match="as it is"):
        await through_the_middleware(ValueError("as it is"))


def test_a_coroutine_that_is_closed_ends_quietly() -> None:
    async def wait(_: Any) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def begin() -> Any:
        coroutine = contain(None, wait)  # type: ignore[arg-type]
        coroutine.send(None)
        return coroutine

    coroutine = asyncio.run(begin())
    coroutine.close()
