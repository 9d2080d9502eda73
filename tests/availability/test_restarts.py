"""A server that stops, reloads or is restarted node by node breaks no request."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from local_stack import BIN, LocalStack, _status, child_processes, free_port
from support.availability import Stack
from support.callers import Caller, Tally, TcpProxy, calling
from support.limits import VARIABLES
from support.waiting import wait_until

pytestmark = pytest.mark.anyio

CALLERS = 10

ANSWERS = 300
"""Before and after each event: every caller has used its connection many times."""


async def wait_for_exit(process: subprocess.Popen[bytes]) -> None:
    await asyncio.to_thread(process.wait)


@pytest.mark.parametrize("server", ["resourceserver", "authserver"])
async def test_a_stop_under_load_breaks_no_connection(stack: Stack, server: str) -> None:
    """New connections are refused after the stop. Requests on existing ones are answered."""
    [target] = [target for target in stack.targets() if target.name == server]
    tally = Tally()
    async with calling([Caller(target.url, target.requests[0], tally) for _ in range(CALLERS)]):
        await tally.wait_for_answers(ANSWERS)
        started = time.monotonic()
        os.kill(stack.servers.pid(server), signal.SIGTERM)
        await wait_for_exit(stack.servers._processes[server])
        seconds = time.monotonic() - started
    print(f"\n{server}, SIGTERM, stopped in {seconds:.1f} s: {tally.line()}")
    assert not tally.failures
    assert tally.announced
    assert tally.refused


@pytest.mark.parametrize("server", ["resourceserver", "authserver"])
async def test_a_reload_under_load_breaks_no_connection(stack: Stack, server: str) -> None:
    [target] = [target for target in stack.targets() if target.name == server]
    tally, arbiter = Tally(), stack.servers.pid(server)
    callers = [Caller(target.url, target.requests[0], tally, keep_alive=number % 2 == 0) for number in range(CALLERS)]
    async with calling(callers):
        for _ in range(2):
            await tally.wait_for_answers(ANSWERS)
            old = set(child_processes(arbiter))
            os.kill(arbiter, signal.SIGHUP)
        await asyncio.to_thread(wait_until, lambda: old.isdisjoint(child_processes(arbiter)))
        await tally.wait_for_answers(ANSWERS)
    print(f"\n{server}, two SIGHUP: {tally.line()}")
    assert not tally.failures
    assert not tally.refused
    assert tally.announced


class Node:
    """One server behind the proxy."""

    def __init__(self, stack: LocalStack, server: str, port: int) -> None:
        self.stack, self.server, self.port = stack, server, port
        self.process: subprocess.Popen[bytes] | None = None

    def _launch(self) -> subprocess.Popen[bytes]:
        environment = self.stack.environment | {f"{self.server.upper()}_BIND": f"127.0.0.1:{self.port}"}
        with (self.stack.folder / f"{self.server}.log").open("ab") as log:
            return subprocess.Popen(
                [BIN / self.server, "serve"], cwd=self.stack.folder, env=environment, stdout=log, stderr=log
            )

    async def start(self) -> None:
        process = self.process = self._launch()
        ready = f"http://127.0.0.1:{self.port}/readyz"
        await asyncio.to_thread(wait_until, lambda: process.poll() is not None or _status(ready) == 200)
        assert process.poll() is None, self.stack.log(self.server)

    async def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        await wait_for_exit(self.process)


@pytest.mark.parametrize("server", ["resourceserver", "authserver"])
async def test_a_rolling_restart_of_two_nodes_breaks_no_request(tmp_path: Path, server: str) -> None:
    """The servers' public port is the proxy's."""
    servers = LocalStack(tmp_path / "stack", workers=1, settings=VARIABLES)
    stack = Stack(servers)
    public = servers.resourceserver_port if server == "resourceserver" else servers.authserver_port
    nodes = [Node(servers, server, free_port()) for _ in range(2)]
    proxy, tally = TcpProxy([node.port for node in nodes]), Tally()
    other = "authserver" if server == "resourceserver" else "resourceserver"
    try:
        async with proxy.listening(public):
            if other == "authserver":
                servers.start(other)
                await asyncio.to_thread(servers.wait_until_ready, other)
            for node in nodes:
                await node.start()
            targets = await asyncio.to_thread(stack.targets)
            [target] = [target for target in targets if target.name == server]
            callers = [
                Caller(target.url, target.requests[0], tally, keep_alive=number % 2 == 0) for number in range(CALLERS)
            ]
            async with calling(callers):
                for node in nodes:
                    await tally.wait_for_answers(ANSWERS)
                    await node.stop()
                    await node.start()
                await tally.wait_for_answers(ANSWERS)
    finally:
        for node in nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
                node.process.wait(15)
        servers.stop()
    print(f"\n{server}, rolling restart of two nodes: {tally.line()}")
    assert not tally.failures
    assert not tally.refused
    assert tally.announced
