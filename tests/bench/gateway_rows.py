"""Rows of `tools/call` through a gateway, compared with FastMCP's proxy in front of the same server.

The CPU time is that of the gateway, with the process that owns its programs on stdio. The time of the server behind it
is told apart.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import peers
from bench.call_rows import call_request, result_of
from bench.contest import Contestant, exchange, medians
from bench.load import Load, write_requests
from bench.measuring import processes, runs, started_apart
from bench.row import Bench, Outcome
from bench.servers import Server, Stack, running
from bench.verdicts import Figure, Target
from local_stack import BIN, free_port
from support.waiting import wait_until

UPSTREAM = Path(__file__).parent / "upstream_server.py"
PROGRAM = [sys.executable, str(UPSTREAM)]
TOOL, SCOPE, TEXT = "echo", "bench:echo", "an echo of the benchmark"
PROXIES = (peers.FASTMCP_PROXY, peers.FASTMCP_SHARED)
TARGETS: Mapping[str, Target | None] = {peer.name: Target(0.5, 0.6) for peer in PROXIES}

POLICY = f"""
[upstream]
{{upstream}}

[scopes."{SCOPE}"]
description = "Call the tool"

[tools.{TOOL}]
scopes = ["{SCOPE}"]
"""


def over_http(bench: Bench) -> Outcome:
    """The server behind the gateway is reached by Streamable HTTP."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    upstream = bench.exits.enter_context(running([*PROGRAM, str(port)], url, bench.folder, os.environ, name="upstream"))
    behind = partial(processes, upstream.group)
    ours, client = _gateway(bench, f"url = {json.dumps(url)}")
    call = partial(_calls, ours, client)
    contestants = [call("ours", ours.resourceserver, behind)]
    for peer in PROXIES:
        shared = peer == peers.FASTMCP_SHARED
        contestants += [call(peer.name, proxy, behind) for proxy in _proxy(bench, ours, peer, url, shared=shared)]
    contestants += [call("the server without a gateway", upstream)]
    return _outcome(bench, contestants)


def over_stdio(bench: Bench) -> Outcome:
    """The server behind the gateway is a program, which all callers share."""
    command = [*PROGRAM, "stdio"]
    ours, client = _gateway(bench, f"command = {json.dumps(command)}\nshared = true")
    call = partial(_calls, ours, client)
    contestants = [call("ours", ours.resourceserver)]
    contestants += [
        call(peers.FASTMCP_SHARED.name, proxy) for proxy in _proxy(bench, ours, peers.FASTMCP_SHARED, command)
    ]
    return _outcome(bench, [_with_program(one) for one in contestants])


def _with_program(one: Contestant) -> Contestant:
    """Return a gateway with the program behind it told apart from the gateway's own processes."""

    def started(behind: bool) -> list[int]:
        return [pid for pid in started_apart(one.server.group) if runs(pid, UPSTREAM) == behind]

    return replace(one, helpers=partial(started, False), behind=partial(started, True))


def _gateway(bench: Bench, upstream: str) -> tuple[Stack, dict[str, Any]]:
    """Return our installation in front of an upstream, and a client that may call its tool."""
    policy = bench.folder / "policy.toml"
    policy.write_text(POLICY.format(upstream=upstream), encoding="utf-8")
    confirm = [BIN / "resourceserver", "policy", "confirm", "--all", "--yes", "--upstream", policy]
    subprocess.run(confirm, cwd=bench.folder, capture_output=True, check=True)
    with_upstream = replace(bench, settings=lambda: {**bench.settings(), "RESOURCESERVER_UPSTREAM": str(policy)})
    ours = with_upstream.installation("authserver", "resourceserver")
    client = ours.create_client("bench", SCOPE)
    request = _request(ours.resource, ours.tokens(client)[0])
    # The server is ready before it knows the tools of the upstream.
    wait_until(lambda: exchange(ours.resource, request)[0] == 200)
    return ours, client


def _request(url: str, token: str) -> bytes:
    return call_request(url, token, TOOL, "2026-07-28", {"text": TEXT})


def _proxy(
    bench: Bench, ours: Stack, peer: peers.Peer, upstream: str | Sequence[str], *, shared: bool = False
) -> Iterable[Server]:
    options = {"issuer": ours.issuer, "resource": ours.resource, "upstream": upstream, "shared": shared}
    return bench.peer(peer, options, at_mcp=True)


def _calls(
    ours: Stack,
    client: Mapping[str, Any],
    name: str,
    server: Server,
    behind: Callable[[], Sequence[int]] = tuple,
) -> Contestant:
    def prepare(file: Path, _: int) -> Load:
        (token,) = ours.tokens(client)
        write_requests(file, [_request(server.url, token)])
        return Load(server.url, file, TEXT)

    return Contestant(name, server, prepare, result_of, behind=behind)


def _outcome(bench: Bench, contestants: list[Contestant]) -> Outcome:
    outcome = bench.contest(contestants, TARGETS)
    figures = [
        Figure(f"CPU per request of the server behind {name}", one.behind_us, "us")
        for name, one in medians(outcome.rounds).items()
        if one.behind_us
    ]
    return replace(outcome, figures=[*outcome.figures, *figures])
