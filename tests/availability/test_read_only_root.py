"""Both servers in a file system in which they can write only to their databases."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from local_stack import BIN, LocalStack, Process
from support.databases import PostgreSQL
from support.mcp_client import connect

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs to mount file systems"),
]

_READ_ONLY = """
set -e
mount --make-rprivate /
if [ "$1" = writable ]; then mount --bind var var; fi
for place in / /tmp /var/tmp; do if mountpoint -q $place; then mount -o remount,bind,ro $place; fi; done
cd "$PWD"
if touch "$2/probe" 2> /dev/null; then echo "the file system is writable"; exit 1; fi
shift 2
exec "$@"
"""


class ReadOnlyStack(LocalStack):
    """Servers that see a read-only file system, except `var` if it holds their databases."""

    def _start(self, arguments: Sequence[str], log: int) -> Process:
        var = "read-only" if self.settings else "writable"
        command = ["unshare", "-m", "sh", "-c", _READ_ONLY, "sh", var, str(self.folder)]
        command += [str(BIN / arguments[0]), *arguments[1:]]
        # Python would write its bytecode, if it could.
        environment = {name: value for name, value in self.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)


@pytest.fixture(params=["sqlite", "postgresql"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadOnlyStack]:
    if request.param == "sqlite":
        yield ReadOnlyStack(tmp_path)
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    urls = {name: server.create_database() for name in ("AUTHSERVER", "RESOURCESERVER")}
    settings = {f"{name}_DATABASE_URL": url.render_as_string(hide_password=False) for name, url in urls.items()}
    yield ReadOnlyStack(tmp_path, settings=settings)
    for url in urls.values():
        server.drop_database(url)


async def test_both_servers_serve_with_a_read_only_file_system(stack: ReadOnlyStack) -> None:
    (stack.folder / "var").mkdir()
    stack.init()
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
    client = stack.create_client("writer", "env:write", "--claim", f"workspace_id={workspace}")
    try:
        stack.start_all()
        async with connect(stack, client, "2026-07-28") as agent:
            created = await agent.call("create_environment", name="staging")
            assert (await agent.call("list_environments"))["environments"] == [created]
    finally:
        stack.stop()
    for server in ("authserver", "resourceserver"):
        assert "Traceback" not in stack.log(server)
        assert stack.run_json(server, "audit", "--client", client["client_id"])
