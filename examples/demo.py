"""The main path, for real: both servers, a registered client, an agent, a refusal, a grant, a step-up, the audit.

`make demo` runs it in a temporary folder on free ports, and leaves nothing behind. `make run` keeps the servers up
on their default ports, with their files in var/ and keys/, and prints what to try.
"""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from local_stack import CommandRefused, LocalStack

AGENT = Path(__file__).with_name("agent.py")
CREDENTIALS = Path("var/demo-client.env")


def say(text: str) -> None:
    """Print a line of the story."""
    print(f"demo:  {text}", flush=True)


def run_admin(stack: LocalStack, *arguments: str) -> None:
    """Run an admin command, and show it with what it prints."""
    print(f"admin: $ {shlex.join(arguments)}", flush=True)
    for line in stack.run(*arguments).splitlines():
        print(f"       {line.rstrip()}", flush=True)


def start(stack: LocalStack) -> None:
    """Start the resource server first: it becomes ready when the authorization server is there."""
    for server in ("resourceserver", "authserver"):
        stack.start(server)
        say(f"started {server} with {stack.workers} workers (process {stack.pid(server)})")
    for server in ("authserver", "resourceserver"):
        stack.wait_until_ready(server)
        say(f"{server} is ready")


def demo() -> None:
    """Tell the whole story once."""
    with tempfile.TemporaryDirectory(prefix="gatehouse-demo-") as folder:
        stack = LocalStack(Path(folder))
        say(f"issuer {stack.issuer}, resource {stack.resource}, SQLite files in a temporary folder")
        stack.init()
        run_admin(stack, "authserver", "resource", "list")
        workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
        say(f"an admin created the workspace {workspace}")
        client = stack.create_client("demo-agent", "env:read", "--claim", f"workspace_id={workspace}")
        say(f"an admin registered {client['client_id']} with scope env:read; its secret was shown once")
        try:
            start(stack)
            run_agent(stack, client["client_id"], client["client_secret"])
            say("the two audit trails, joined by jti:")
            run_admin(stack, "authserver", "audit")
            run_admin(stack, "resourceserver", "audit")
        finally:
            stack.stop()
    say("both servers are stopped, nothing is left behind")


def run_agent(stack: LocalStack, client_id: str, client_secret: str) -> None:
    """Run the agent; grant what it asks for while it waits. Raises CalledProcessError when it does not succeed."""
    command = [sys.executable, str(AGENT), "--resource", stack.resource, "--issuer", stack.issuer]
    environment = {**os.environ, "AGENT_CLIENT_ID": client_id, "AGENT_CLIENT_SECRET": client_secret}
    agent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None  # noqa: S101 - it is a pipe
    for line in agent.stdout:
        print(line, end="", flush=True)
        if "I go on trying" in line:
            grant = ("client", "grant", "add", client_id, "--resource", stack.resource, "--scope", "env:write")
            run_admin(stack, "authserver", *grant)
    if agent.wait() != 0:
        raise subprocess.CalledProcessError(agent.returncode, command)


def keep_running() -> None:
    """Serve on the default ports until Ctrl-C."""
    stack = LocalStack(Path(), authserver_port=9000, resourceserver_port=8000)
    for port in (stack.authserver_port, stack.resourceserver_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"demo:  port {port} of 127.0.0.1 is in use; stop what listens there")
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
    """Register a client, and keep its credentials in a file that only its owner can read."""
    known = {known["name"]: known for known in stack.run_json("resourceserver", "workspace", "list")}
    workspace = known.get("demo") or stack.run_json("resourceserver", "workspace", "create", "--name", "demo")
    client = stack.create_client("demo-agent", "env:read", "--claim", f"workspace_id={workspace['workspace_id']}")
    with os.fdopen(os.open(CREDENTIALS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"AGENT_CLIENT_ID={client['client_id']}\nAGENT_CLIENT_SECRET={client['client_secret']}\n")
    say(f"registered {client['client_id']}; its credentials are in {CREDENTIALS}")


TO_TRY = f"""
Try in another terminal, in this folder:

  export PATH="$PWD/.venv/bin:$PATH"
  set -a; . {CREDENTIALS}; set +a

  # a token
  printf 'user = "%s:%s"\\n' "$AGENT_CLIENT_ID" "$AGENT_CLIENT_SECRET" |
      curl -sw '\\n' -K - -d grant_type=client_credentials http://127.0.0.1:9000/token

  # an agent; the first time it is refused a tool, and waits a minute for the grant
  python examples/agent.py --environment ci-$(date +%s)

  # the grant, meanwhile in a third terminal
  authserver client grant add "$AGENT_CLIENT_ID" --resource http://127.0.0.1:8000/mcp --scope env:write

  # what happened
  authserver audit
  resourceserver audit

Logs: authserver.log and resourceserver.log. Ctrl-C stops both servers.
"""


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep-running", action="store_true", help="serve on the default ports until Ctrl-C")
    story = keep_running if parser.parse_args().keep_running else demo
    try:
        story()
    except KeyboardInterrupt:
        sys.exit("demo:  stopped")
    except (CommandRefused, TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"demo:  {error}")


if __name__ == "__main__":
    main()
