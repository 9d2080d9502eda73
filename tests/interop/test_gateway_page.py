"""The commands of docs/gateway.md, as they stand there, with the package of npm."""

from pathlib import Path

from support.documents import ROOT, commands, link_working_copy, typed
from support.interop import NODE_MODULES
from support.prepared_stack import PreparedStack

BEFORE = """
export PATH="$PWD/.venv/bin:$PATH"; umask 077
authserver init
resourceserver init
authserver serve 2> authserver.log &
"""
AFTER = """
curl -fsw '\\n' --retry 30 --retry-all-errors --retry-delay 1 http://127.0.0.1:8000/readyz
field() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }
printf 'user = "%s:%s"\\n' "$(field agent.json client_id)" "$(field agent.json client_secret)" |
    curl -s -K - -d grant_type=client_credentials http://127.0.0.1:9000/token > token.json
for _ in $(seq 100); do
    printf 'header = "Authorization: Bearer %s"\\n' "$(field token.json access_token)" |
        curl -sw '\\n' -K - -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\
            http://127.0.0.1:8000/mcp -d '{"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "echo", "arguments": {"message": "milk"}}}' | tee answer.json
    grep -q "Echo: milk" answer.json && break
    sleep 0.5
done
resourceserver audit --action tool.call
CLIENT_ID=$(field agent.json client_id)
"""


def test_a_server_of_npm_is_called_after_five_commands(tmp_path: Path) -> None:
    link_working_copy(tmp_path)
    # Where npx finds the version that the tests have installed.
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    text = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
    first, _, rest = text.partition("## How a call is decided")
    page, catalogue = commands(first), commands(rest)
    assert len(page.strip().splitlines()) == 5
    serve = "resourceserver serve --upstream policy.toml"
    assert page.rstrip().endswith(serve)
    script = BEFORE + page.replace(serve, f"{serve} 2> resourceserver.log &") + AFTER
    script += catalogue.replace("https://tools.example.com/mcp", "http://127.0.0.1:8000/mcp")
    script += "\nkill $(jobs -p)\n"
    done = typed(script, PreparedStack(tmp_path), tmp_path)
    logs = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log")]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
    assert "Echo: milk" in done.stdout
    assert "toggle-simulated-logging" in done.stdout
    assert "allowed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
