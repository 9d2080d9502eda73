"""A tour with real processes: both servers, an agent, a refusal, a grant, the audit logs, a revocation.

`make demo` runs it in a temporary folder on free ports and leaves nothing behind. VERBOSE=1 prints every command and
request. `make run` keeps the servers running on their default ports, with files in var/ and keys/, and prints commands
to try.
"""

import argparse
import base64
import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from local_stack import CommandRefused, LocalStack

AGENT = Path(__file__).with_name("agent.py")
CREDENTIALS = Path("var/demo-client.env")
VERBOSE = bool(os.environ.get("VERBOSE"))
COLOR = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
BOLD, DIM, RED, GREEN, CYAN = "1", "2", "31", "32", "36"
REVOCATION_TIMEOUT = 30.0
"""Seconds to wait until a revoked token is refused. After that, the demo fails."""

_steps = itertools.count(1)


def styled(text: str, style: str) -> str:
    """Return a text with the escape codes of a style; unchanged if the output has no color."""
    return f"\x1b[{style}m{text}\x1b[0m" if COLOR else text


def step(title: str, why: str) -> None:
    """Print the heading of a numbered step, and why it matters."""
    print(f"\n{styled(f'{next(_steps)}. {title}', BOLD)}")
    print(styled(textwrap.indent(textwrap.fill(why, 96), "   "), DIM), flush=True)


def say(text: str, style: str = "") -> None:
    """Print an indented line."""
    text = f"   {text}"
    print(styled(text, style) if style else text, flush=True)


def run_admin(stack: LocalStack, *arguments: str, output: bool = VERBOSE) -> None:
    """Run a command as an admin and print it. With `output`, also print its output."""
    say(f"$ {shlex.join(arguments)}", CYAN)
    printed = stack.run(*arguments)
    if output:
        for line in printed.splitlines():
            say(f"  {line.rstrip()}")


def start(stack: LocalStack) -> None:
    """Start both servers, the resource server first: the order does not matter."""
    for server in ("resourceserver", "authserver"):
        stack.start(server)
    for server in ("authserver", "resourceserver"):
        stack.wait_until_ready(server)
    say(f"both servers are ready: issuer {stack.issuer}, resource {stack.resource}", GREEN)


def demo() -> None:
    """Show all steps once, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="gatehouse-demo-") as folder:
        stack = LocalStack(Path(folder))
        step(
            "Two servers, one catalogue of scopes",
            "The resource server's tools declare their scopes in code. The authorization server reads that catalogue: "
            "it issues exactly the scopes that the tools enforce.",
        )
        stack.init()
        run_admin(stack, "authserver", "resource", "list", output=True)
        step(
            "An admin registers an agent that may only read",
            "A client gets scopes at one resource. Its secret is shown once and stored as a digest.",
        )
        workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
        client = stack.create_client("demo-agent", "env:read", "--claim", f"workspace_id={workspace}")
        say(f"{client['client_id']} may use env:read in the workspace {workspace}")
        step(
            "Both servers start",
            "The resource server verifies tokens with keys and status lists that it fetches in the background. "
            "No call waits for the authorization server.",
        )
        try:
            start(stack)
            tell(stack, client)
        finally:
            stack.stop()
    print(TO_TRY_NEXT, flush=True)


def tell(stack: LocalStack, client: Mapping[str, Any]) -> None:
    """Show the steps for which both servers run."""
    step(
        "The agent discovers the authorization server",
        "It knows only the URL of the resource server, the issuer and its credentials. The 401 names the metadata, and "
        "the metadata names the token endpoint.",
    )
    run_agent(stack, client["client_id"], client["client_secret"])
    step(
        "The audit logs show what happened",
        "Each server records every token, call, refusal and change. The jti of a token joins the two logs.",
    )
    show_audit(stack, "authserver", client["client_id"])
    show_audit(stack, "resourceserver", client["client_id"])
    step(
        "An admin revokes every token of the agent",
        "Revocation sets bits in a signed list that resource servers poll every 5 seconds. JWTs need no introspection "
        "to be revocable.",
    )
    revoke(stack, client)


def run_agent(stack: LocalStack, client_id: str, client_secret: str) -> None:
    """Run the agent, and grant the missing scope while it waits. Raises CalledProcessError if the agent fails."""
    command = [sys.executable, str(AGENT), "--resource", stack.resource, "--issuer", stack.issuer]
    environment = {**os.environ, "AGENT_CLIENT_ID": client_id, "AGENT_CLIENT_SECRET": client_secret}
    agent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None  # noqa: S101 - it is a pipe
    for line in agent.stdout:
        if "calling create_environment" in line:
            step(
                "The agent is refused a tool",
                "Before a tool runs, the gate checks its scopes and dispatch checks them again. The refusal names the "
                "scope that is missing.",
            )
        say(line.rstrip(), RED if "is refused" in line else GREEN if "created:" in line else "")
        if "waiting for the grant" in line:
            step(
                "An admin grants the scope",
                "The running session obtains a token with the new scope and repeats the call. Nothing restarts.",
            )
            grant = ("client", "grant", "add", client_id, "--resource", stack.resource, "--scope", "env:write")
            run_admin(stack, "authserver", *grant)
    if agent.wait() != 0:
        raise subprocess.CalledProcessError(agent.returncode, command)


def show_audit(stack: LocalStack, server: str, client_id: str) -> None:
    """Print the events of a client, grouping repeated ones. With VERBOSE, print the output of the command."""
    command = (server, "audit", "--client", client_id)
    if VERBOSE:
        run_admin(stack, *command)
        return
    say(f"$ {shlex.join(command)}", CYAN)
    events = [
        f"{event['action']:<18}{event['object']:<28}{event['outcome']:<9}"
        f"{event['reason'] or event['detail'].get('scope', '')}".rstrip()
        for event in stack.run_json(*command)
    ]
    for event, repeated in itertools.groupby(events):
        count = len(list(repeated))
        say(f"  {event}{f' ({count} times)' if count > 1 else ''}")


def revoke(stack: LocalStack, client: Mapping[str, Any]) -> None:
    """Revoke the client's tokens, and wait until the resource server refuses one. Raises TimeoutError."""
    token = obtain_token(stack, client)
    say(f"a call with a new token: HTTP {call_status(stack, token)}", GREEN)
    run_admin(stack, "authserver", "token", "revoke", "--client", client["client_id"])
    began = time.monotonic()
    while (status := call_status(stack, token)) != HTTPStatus.UNAUTHORIZED:
        if time.monotonic() - began > REVOCATION_TIMEOUT:
            raise TimeoutError(f"the revoked token is still accepted after {REVOCATION_TIMEOUT:.0f} s")
        time.sleep(0.2)
    say(f"the same call, {time.monotonic() - began:.1f} s after the command: HTTP {status}", RED)


def obtain_token(stack: LocalStack, client: Mapping[str, Any]) -> str:
    """Return an access token, obtained with the client's secret."""
    basic = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 - a loopback URL
        f"{stack.issuer}/token", b"grant_type=client_credentials", {"Authorization": f"Basic {basic}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - a loopback URL
        token: str = json.load(response)["access_token"]
        return token


def call_status(stack: LocalStack, token: str) -> int:
    """Return the HTTP status of a call with a token."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami"}})
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    request = urllib.request.Request(stack.resource, body.encode(), headers)  # noqa: S310 - a loopback URL
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - a loopback URL
            status: int = response.status
    except urllib.error.HTTPError as error:
        error.close()
        status = error.code
    if VERBOSE:
        say(f"POST {stack.resource} -> {status}", DIM)
    return status


TO_TRY_NEXT = f"""
{styled("Both servers are stopped, and all files of the demo are removed.", GREEN)}

Try next:
  VERBOSE=1 make demo     run this again, with every request
  make run                keep both servers running, and try commands yourself
  docs/tutorial.md        do all of this yourself, step by step
  docs/tools.md           protect your own tools
"""


def keep_running() -> None:
    """Run both servers on the default ports until Ctrl-C."""
    stack = LocalStack(Path(), authserver_port=9000, resourceserver_port=8000)
    for port in (stack.authserver_port, stack.resourceserver_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"demo: port {port} of 127.0.0.1 is in use. Stop the program that listens there")
    stack.init()
    if not CREDENTIALS.exists():
        register(stack)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        start(stack)
        print(TO_TRY, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            stack.wait("authserver")
    finally:
        stack.stop()
        say("both servers are stopped")


def register(stack: LocalStack) -> None:
    """Register a client, and write its credentials to a file that only its owner can read."""
    known = {known["name"]: known for known in stack.run_json("resourceserver", "workspace", "list")}
    workspace = known.get("demo") or stack.run_json("resourceserver", "workspace", "create", "--name", "demo")
    client = stack.create_client("demo-agent", "env:read", "--claim", f"workspace_id={workspace['workspace_id']}")
    with os.fdopen(os.open(CREDENTIALS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"AGENT_CLIENT_ID={client['client_id']}\nAGENT_CLIENT_SECRET={client['client_secret']}\n")
    say(f"registered {client['client_id']}; its credentials are in {CREDENTIALS}")


TO_TRY = f"""
Copy these into another terminal, in this folder:

  export PATH="$PWD/.venv/bin:$PATH"
  set -a; . {CREDENTIALS}; set +a

  # obtain a token
  printf 'user = "%s:%s"\\n' "$AGENT_CLIENT_ID" "$AGENT_CLIENT_SECRET" |
      curl -sw '\\n' -K - -d grant_type=client_credentials http://127.0.0.1:9000/token

  # run an agent in the background; the first time, a call is refused, and the agent waits a minute for the grant
  python examples/agent.py --environment ci-$(date +%s) & AGENT=$!

  # grant the scope while it waits
  authserver client grant add "$AGENT_CLIENT_ID" --resource http://127.0.0.1:8000/mcp --scope env:write
  wait $AGENT

  # see what happened
  authserver audit
  resourceserver audit

Logs: authserver.log and resourceserver.log. Ctrl-C stops both servers.
"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--keep-running", action="store_true", help="run both servers on the default ports until Ctrl-C"
    )
    story = keep_running if parser.parse_args().keep_running else demo
    try:
        story()
    except KeyboardInterrupt:
        sys.exit("demo: stopped")
    except (CommandRefused, TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
