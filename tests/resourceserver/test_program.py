"""One process of a stdio upstream: how it is started and stopped, its messages, and what is kept of them."""

import asyncio
import errno
import json
import os
import pwd
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.programs import GRACE, SCRIPT, exists, kill, members, transport, until

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy
from gatehouse.resourceserver.upstream.stdio import error_output
from gatehouse.resourceserver.upstream.stdio import launch as launch_module
from gatehouse.resourceserver.upstream.stdio import program as program_module
from gatehouse.resourceserver.upstream.stdio.error_output import ErrorOutput
from gatehouse.resourceserver.upstream.stdio.launch import prepare_launch, program_variables
from gatehouse.resourceserver.upstream.stdio.program import Program
from gatehouse.resourceserver.upstream.upstream import (
    Notify,
    OutcomeUnknown,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)

pytestmark = pytest.mark.anyio

Start = Callable[..., Program]
LIMIT = 60.0


@pytest.fixture
async def start(anyio_backend: str) -> AsyncIterator[Start]:
    """Start programs, and stop them after the test."""
    started: list[Program] = []

    def start(*options: str, max_line: int = 100_000, variables: dict[str, str] | None = None, **of: Any) -> Program:
        chosen = transport(*options, **of)
        launch = prepare_launch(chosen, program_variables(chosen, os.environ if variables is None else variables))
        started.append(Program(launch, max_line, lambda _: None, grace=GRACE))
        return started[-1]

    yield start
    for program in started:
        program.stop()
    for program in started:
        await program.wait()


async def call(
    program: Program, tool: str, limit: float = LIMIT, notify: Notify | None = None, **arguments: Any
) -> Any:
    def params(number: int) -> dict[str, Any]:
        return {"name": tool, "arguments": arguments, "_meta": {"progressToken": number}}

    result = await program.request("tools/call", params, limit, notify=notify)
    return result.get("structuredContent", result)


# Start


async def test_a_program_gets_only_the_named_variables_and_no_descriptor(start: Start, tmp_path: Path) -> None:
    variables = {"PATH": "/bin", "HOME": "/home", "TOKEN": "secret", "LD_LIBRARY_PATH": "/lib"}
    program = start("a b", "$HOME;`id`", environment=("HOME", "MISSING"), directory=tmp_path, variables=variables)
    seen = await call(program, "describe")
    assert seen["environment"] == {"PATH": "/bin", "HOME": "/home"}
    assert seen["descriptors"] == [0, 1, 2]
    assert seen["folder"] == str(tmp_path)
    assert seen["arguments"] == ["a b", "$HOME;`id`"], "no shell reads them"
    assert seen["pid"] == seen["pgid"] == seen["sid"] == program.pid
    assert seen["core"] == [0, 0]
    assert seen["limit"] <= 1024
    assert seen["children"] == []
    assert not seen["ignored"] & (1 << (signal.SIGTERM - 1))


async def test_path_is_always_passed(start: Start) -> None:
    assert (await call(start(variables={}), "describe"))["environment"] == {"PATH": os.defpath}


async def test_python_finds_its_libraries_and_the_program_does_not(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    assert "LD_LIBRARY_PATH" not in (await call(start(), "describe"))["environment"]


async def test_a_command_is_found_in_the_path_of_its_policy(start: Start, tmp_path: Path) -> None:
    (tmp_path / "served").symlink_to(sys.executable)
    script = transport().command[1:]
    variables = {"PATH": str(tmp_path)}
    found = start(command=("served", *script), variables=variables)
    assert (await call(found, "describe"))["pid"] == found.pid
    relative = start(command=("./served", *script), directory=tmp_path)
    assert (await call(relative, "describe"))["pid"] == relative.pid
    with pytest.raises(UpstreamUnavailable, match="the command absent is not in PATH"):
        start(command=("absent",), variables=variables)


async def test_a_file_that_cannot_be_executed_is_named_in_the_log(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    program = start(command=(str(tmp_path / "absent"),))
    with pytest.raises(UpstreamError, match="ended with status 1"):
        await call(program, "echo")
    assert f"{tmp_path}/absent cannot be executed: No such file or directory" in caplog.text


@pytest.mark.parametrize("refused", ["pipe", "Popen", "pidfd_open"])
async def test_a_system_without_room_for_a_process_makes_the_program_unavailable(
    start: Start, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(launch_module.subprocess if refused == "Popen" else launch_module.os, refused, refuse)
        with pytest.raises(UpstreamUnavailable, match="cannot be started: Too many open files"):
            start()
    assert descriptors() == before


def descriptors() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


# User


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_program_runs_as_the_user_of_its_policy(start: Start) -> None:
    nobody = pwd.getpwnam("nobody")
    # The other user may be unable to read the files of the tests.
    command = (_readable_python(), "-I", "-S", "-c", await anyio.Path(SCRIPT).read_text())
    seen = await call(start(user="nobody", command=command, directory=Path("/")), "describe")
    assert set(seen["ids"][:3]) == {nobody.pw_uid}
    assert set(seen["ids"][3:6]) == {nobody.pw_gid}
    assert set(seen["ids"][6:]) == set(os.getgrouplist("nobody", nobody.pw_gid))


def _readable_python() -> str:
    """Return an interpreter that any user can execute."""
    if not (path := next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), "")):
        pytest.skip("there is no Python that another user can execute: none in /usr/bin or /usr/local/bin")
    return path


async def test_a_user_that_is_unknown_or_out_of_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidPolicy, match=r'upstream\.user: this machine has no user "no-such-user"'):
        prepare_launch(transport(user="no-such-user"), {})
    own = pwd.getpwuid(os.geteuid()).pw_name
    assert prepare_launch(transport(user=own), {}).user == ""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(InvalidPolicy, match=r"upstream\.user: only root can start a program as another user"):
        prepare_launch(transport(user="nobody"), {})
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert prepare_launch(transport(user="nobody"), {}).user.startswith(f"{nobody.pw_uid},{nobody.pw_gid},")


# Requests


async def test_requests_are_matched_by_id_and_progress_stays_in_order(start: Start) -> None:
    program, seen = start(), []

    async def notify(progress: float, total: float | None, message: str | None) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append((progress, total, message))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(_echo, program, number)
        await call(program, "count", notify=notify)
    assert seen == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


async def _echo(program: Program, number: int) -> None:
    assert (await call(program, "echo", number=number))["arguments"] == {"number": number}


async def test_progress_that_nobody_requested_is_dropped(start: Start) -> None:
    await call(start(), "count")


async def test_an_error_of_the_program_has_its_code_and_not_its_text(start: Start) -> None:
    with pytest.raises(UpstreamRefused, match=r"-32601$") as raised:
        await start("legacy").request("server/discover", lambda _: {}, LIMIT)
    assert "secret" not in str(raised.value)


async def test_a_cancelled_request_is_cancelled_in_the_program(start: Start) -> None:
    program = start()
    await call(program, "echo")
    with anyio.move_on_after(0.05):
        await call(program, "wait")
    assert await call(program, "cancelled") == {"cancelled": [2]}


async def test_a_handshake_is_never_cancelled(start: Start) -> None:
    program = start("silent")
    with pytest.raises(OutcomeUnknown, match="did not answer in time"):
        await program.request("server/discover", lambda _: {}, 0.01, handshake=True)
    assert await call(program, "cancelled") == {"cancelled": []}


async def test_a_request_ends_after_its_limit_and_progress_renews_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start()
    await call(program, "echo")
    other = asyncio.create_task(call(program, "wait"))
    with pytest.raises(OutcomeUnknown, match="did not answer in time"):
        await call(program, "wait", limit=0.05)
    assert program.running, "another request still waits"
    other.cancel()
    with pytest.raises(OutcomeUnknown, match="did not answer in time"):
        await call(program, "wait", limit=0.05)
    assert not program.running
    assert program.failed


async def test_a_program_that_was_heard_is_not_stopped_at_a_limit(start: Start) -> None:
    program = start()
    await call(program, "echo")
    waiting = asyncio.create_task(call(program, "wait", limit=0.5))
    await anyio.lowlevel.checkpoint()
    await call(program, "echo")
    with pytest.raises(OutcomeUnknown):
        await waiting
    assert program.running


async def test_server_requests_are_refused_and_pings_answered(start: Start) -> None:
    program = start()
    asking = asyncio.create_task(call(program, "ask"))

    async def answers() -> list[dict[str, Any]]:
        received = (await call(program, "received"))["received"]
        return [message for message in received if "method" not in message]

    with anyio.fail_after(30):
        while len(seen := await answers()) < 2:
            pass
    assert seen[0] == {"jsonrpc": "2.0", "id": "a", "result": {}}
    assert (seen[1]["id"], seen[1]["error"]["code"]) == (7, -32601)
    asking.cancel()


async def test_an_answer_that_is_too_long_fails_only_its_call(start: Start) -> None:
    program = start(max_line=1000)
    for text in ('{"jsonrpc":"2.0","id":ID,"result":"%s"}\n', '{"result":"%s","jsonrpc":"2.0","id":ID}\n'):
        with pytest.raises(OutcomeUnknown, match="longer than 1000 bytes"):
            await call(program, "raw", text=text % ("x" * 5000))
    assert (await call(program, "echo"))["name"] == "echo"


async def test_a_program_that_does_not_read_delays_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "MAX_UNSENT", 300_000)
    program = start()
    await call(program, "read no more")
    large = "x" * 200_000
    begun = asyncio.create_task(call(program, "echo", text=large, limit=0.3))
    await anyio.lowlevel.checkpoint()
    kept = asyncio.create_task(call(program, "echo", text=large, limit=0.1))
    await anyio.lowlevel.checkpoint()
    with pytest.raises(UpstreamUnavailable, match="does not read its standard input"):
        await call(program, "echo")
    with pytest.raises(UpstreamUnavailable, match="does not read its standard input"):
        await kept
    with pytest.raises(OutcomeUnknown, match="did not answer in time"):
        await begun
    program.stop()
    await program.wait()


async def test_a_cancellation_that_does_not_fit_is_not_kept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    program = start()
    await call(program, "read no more")
    monkeypatch.setattr(program_module, "MAX_UNSENT", 1000)
    waiting = asyncio.create_task(call(program, "echo", text="x" * 200_000))
    await anyio.lowlevel.checkpoint()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert program.running


# End


@pytest.mark.parametrize("tool", ["die", "fork and die"])
async def test_a_program_that_dies_fails_its_calls_and_leaves_nothing(
    start: Start, tool: str, caplog: pytest.LogCaptureFixture
) -> None:
    program = start()
    await call(program, "echo")
    with pytest.raises(OutcomeUnknown, match="the program ended with status 3"):
        await call(program, tool)
    assert not program.running
    assert program.failed
    await until(lambda: members(program.pid) == [])
    assert f"program {program.pid} ended with status 3" in caplog.text
    with pytest.raises(UpstreamUnavailable, match="the program has ended"):
        await call(program, "echo")
    program.stop()
    await program.wait()


async def test_a_killed_program_is_reported_with_the_signal(start: Start) -> None:
    program = start()
    await call(program, "echo")
    waiting = asyncio.create_task(call(program, "wait"))
    await anyio.lowlevel.checkpoint()
    kill(program.pid)
    with pytest.raises(OutcomeUnknown, match="the program was ended by signal 9"):
        await waiting


async def test_an_answer_before_the_end_counts(start: Start) -> None:
    text = '{"jsonrpc":"2.0","id":ID,"result":{"content":[]}}\n'
    program = start(command=("/bin/sh", "-c", f"read line; printf '%s' '{text.replace('ID', '1')}'; exit 5"))
    assert await call(program, "echo") == {"content": []}
    await program.wait()
    assert program.failed


async def test_a_program_that_ends_with_its_input_is_not_killed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    program = start()
    await call(program, "echo")
    program.stop()
    program.stop()
    await program.wait()
    assert not program.failed
    assert caplog.text == ""


async def test_stopping_ends_the_whole_process_group(start: Start) -> None:
    program = start("keep")
    grandchild = (await call(program, "fork"))["pid"]
    assert grandchild in members(program.pid)
    program.stop()
    assert exists(grandchild)
    await program.wait()
    await until(lambda: members(program.pid) == [])


async def test_no_signal_is_sent_once_another_process_may_have_the_id(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start()
    await call(program, "echo")
    program.stop()
    await program.wait()
    sent: list[Any] = []
    monkeypatch.setattr(os, "killpg", lambda *signalled: sent.append(signalled))
    program._signal_group(signal.SIGTERM)
    assert sent == []


@pytest.mark.parametrize("descriptor", [0, 1])
async def test_a_program_that_closes_a_pipe_is_stopped(start: Start, descriptor: int) -> None:
    program = start()
    if descriptor == 0:
        await call(program, "close", descriptor=0)
    with pytest.raises(UpstreamError):
        await call(program, "close" if descriptor else "echo", descriptor=descriptor)
    await program.wait()
    assert program.failed


async def test_a_program_that_cannot_be_killed_fails_its_calls(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = start("keep")
    await call(program, "echo")
    waiting = asyncio.create_task(call(program, "wait"))
    await anyio.lowlevel.checkpoint()
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda *_: None)
        program.stop()
        with pytest.raises(OutcomeUnknown, match="cannot be killed"):
            await waiting
        await program.wait()
    kill(program.pid)
    await until(lambda: members(program.pid) == [])


@pytest.mark.threat("T-172")
async def test_the_group_ends_when_the_gateway_is_killed(tmp_path: Path) -> None:
    """The gateway is another process here, which is ended by SIGKILL."""
    code = (
        "import asyncio, json, os, sys\n"
        "from gatehouse.resourceserver.catalogue.policy_file import StdioTransport\n"
        "from gatehouse.resourceserver.upstream.stdio.launch import prepare_launch, program_variables\n"
        "from gatehouse.resourceserver.upstream.stdio.program import Program\n"
        "async def main():\n"
        "    transport = StdioTransport(tuple(sys.argv[1:]), (), None, None, False)\n"
        "    program = Program(prepare_launch(transport, program_variables(transport, os.environ)), 9999, print)\n"
        "    params = {'name': 'fork', 'arguments': {}}\n"
        "    forked = await program.request('tools/call', lambda _: params, 60)\n"
        "    print(json.dumps([program.pid, forked['structuredContent']['pid']]), flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    gateway = await anyio.open_process([sys.executable, "-c", code, *transport("keep").command])
    assert gateway.stdout is not None
    pid, grandchild = json.loads(await gateway.stdout.receive())
    assert {pid, grandchild} <= set(members(pid))
    gateway.kill()
    await gateway.aclose()
    await until(lambda: members(pid) == [])


# Parts


async def test_standard_error_is_logged_printable_and_at_a_rate(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    program = start()
    await call(program, "complain", text="\x1b[31mred\r\n" + "x" * 3000 + "\n\xe9 Bearer\n")
    await call(program, "complain", text="line\n", times=100)
    program.stop()
    await program.wait()
    lines = [record.getMessage().removeprefix(f"program {program.pid}: ") for record in caplog.records]
    assert lines[:3] == [r"\x1b[31mred", "x" * 500, "\xe9 Bearer"]
    assert len(lines) == 11
    assert lines[-1] == "(93 more lines, which are not logged)"


async def test_a_program_that_floods_standard_error_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_output, "_BURST", 10_000)
    monkeypatch.setattr(error_output, "_BYTES_A_SECOND", 1_000_000)
    source, sink = os.pipe()
    os.set_blocking(source, False)
    os.set_blocking(sink, False)
    written: list[str] = []
    output = ErrorOutput(source, written.append)
    sent = 0
    with anyio.fail_after(30):
        while sent < 200_000:
            with suppress(BlockingIOError):
                sent += os.write(sink, b"0123456789\n" * 1000)
            await anyio.sleep(0.001)
    output.close()
    os.close(sink)
    os.close(source)
    assert written[-1].endswith("more lines, which are not logged)")


async def test_the_end_of_standard_error_is_noticed() -> None:
    source, sink = os.pipe()
    os.set_blocking(source, False)
    written: list[str] = []
    output = ErrorOutput(source, written.append)
    os.write(sink, b"one\n")
    os.close(sink)
    with anyio.fail_after(30):
        while not written:
            await anyio.lowlevel.checkpoint()
    await anyio.sleep(0.01)
    output.close()
    os.close(source)
    assert written == ["one"]
