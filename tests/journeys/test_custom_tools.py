"""Tools that a user wrote, from an empty file to an authorized call, as their README says."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from local_stack import CommandRefused
from support.documents import ROOT, commands, link_working_copy, typed
from support.mcp_client import connect
from support.prepared_stack import PreparedStack

EXAMPLE = ROOT / "examples" / "custom_tools"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")


def test_a_user_writes_a_tool_and_guards_an_existing_server(tmp_path: Path) -> None:
    link_working_copy(tmp_path)
    done = typed(commands(README), PreparedStack(tmp_path), tmp_path)
    logs = [path.read_text(encoding="utf-8") for path in (tmp_path / "mynotes").glob("*.log")]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
    told = iter(done.stdout.splitlines())
    # In this order, with other lines between them.
    for expected in (
        r"list_notes +notes:read +no ",
        r'\{"status":"ok"',
        r'.*"structuredContent":\{"notes":\[\]\}.* -> 200',
        r".*This tool needs the scope notes:write.* -> 403",
        r'.*"structuredContent":\{"notes":\["buy milk"\]\}.* -> 200',
        r".*tool\.call +add_note +refused +needs notes:write",
        r".*tool\.call +add_note +allowed",
        r'.*"structuredContent":\{"result":"agent_[^"]+"\}.* -> 200',
        r'.*"structuredContent":\{"result":"dong dong [^"]+"\}.* -> 200',
        r".*The arguments do not fit .*name: Field required.* -> 200",
        r".*There is no such tool.* -> 400",
    ):
        assert any(re.match(expected, line) for line in told), f"{expected}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.anyio
async def test_custom_tools_need_no_directory_table(tmp_path: Path) -> None:
    stack, tools = PreparedStack(tmp_path), ("--tools", "mytools")
    (tmp_path / "mytools.py").write_text((EXAMPLE / "mytools.py").read_text(encoding="utf-8"), encoding="utf-8")
    stack.init(*tools)
    try:
        stack.start("authserver")
        stack.start("resourceserver", *tools)
        stack.wait_until_ready("authserver")
        stack.wait_until_ready("resourceserver")
        credentials = stack.create_client("writer", "notes:write")
        async with connect(stack, credentials, "2026-07-28") as agent:
            assert await agent.call("add_note", text="buy milk") == {"notes": ["buy milk"]}
    finally:
        stack.stop()
    with closing(sqlite3.connect(tmp_path / "var" / "resourceserver.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    own = {"alembic_version", "audit_checkpoint", "audit_event", "heartbeat", "idempotency_key", "upstream_session"}
    assert tables == own
    events = stack.run_json("resourceserver", "audit", "--action", "tool.call")
    assert (events[-1]["object"], events[-1]["outcome"]) == ("add_note", "allowed")


@pytest.mark.parametrize("name", ["mytools.py", "guarded_server.py"])
def test_the_readme_shows_the_files_of_the_example(name: str) -> None:
    shown = re.findall(rf"cat > {re.escape(name)} <<'PYTHON'\n(.*?)PYTHON\n", README, flags=re.DOTALL)
    assert shown == [(EXAMPLE / name).read_text(encoding="utf-8")]


def test_an_invalid_catalogue_starts_no_process(tmp_path: Path) -> None:
    stack = PreparedStack(tmp_path, settings={"RESOURCESERVER_TOOLS": "mytools"})
    source = (EXAMPLE / "mytools.py").read_text(encoding="utf-8")
    (tmp_path / "mytools.py").write_text(source, encoding="utf-8")
    stack.init()
    (tmp_path / "mytools.py").write_text(source.replace('scopes=["notes:write"]', "scopes=[]"), encoding="utf-8")
    with pytest.raises(CommandRefused, match=r"mytools\.py:\d+: add_note has no scopes\. List them") as refused:
        stack.run("resourceserver", "serve")
    assert refused.value.code == 1
    assert "Traceback" not in refused.value.message
    assert "worker" not in refused.value.message
