"""An installation moves from SQLite to PostgreSQL; its resource server and clients keep their tokens and secrets."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from support.databases import PostgreSQL
from support.prepared_stack import PreparedStack
from support.revocation_window import obtain, ping

pytestmark = pytest.mark.anyio


@pytest.fixture
def stacks(postgresql: PostgreSQL, tmp_path: Path) -> Iterator[tuple[PreparedStack, PreparedStack]]:
    """An installation on SQLite, and one with the same addresses whose authorization server uses PostgreSQL."""
    url = postgresql.create_database()
    old = PreparedStack(tmp_path / "old", workers=1)
    settings = {"AUTHSERVER_DATABASE_URL": url.render_as_string(hide_password=False)}
    new = PreparedStack(tmp_path / "new", old.authserver_port, old.resourceserver_port, workers=1, settings=settings)
    new.folder.mkdir()
    old.init()
    try:
        yield old, new
    finally:
        old.stop()
        new.stop()
        postgresql.drop_database(url)


async def status_once_known(http: httpx2.AsyncClient, stack: PreparedStack, token: str) -> int:
    """Return the status of a call as soon as the resource server knows the status lists."""
    with anyio.fail_after(20):
        while True:
            if (status := await ping(http, stack, token)) != httpx2.codes.SERVICE_UNAVAILABLE:
                return status
            await anyio.lowlevel.checkpoint()


@pytest.mark.threat("T-094")
async def test_a_token_and_a_secret_survive_a_move_to_postgresql(
    stacks: tuple[PreparedStack, PreparedStack],
) -> None:
    old, new = stacks
    old.start_all()
    client = old.create_client("mover", "env:read")
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as http:
        kept, revoked = [await obtain(http, old, client) for _ in range(2)]
        assert [await ping(http, old, token) for token in (kept, revoked)] == [200, 200]
        basic = (client["client_id"], client["client_secret"])
        await http.post(f"{old.issuer}/revoke", data={"token": revoked}, auth=basic)
        old.stop()
        file = str(old.folder / "installation.jsonl")
        old.run("authserver", "export", file, "--with-keys")
        shutil.copytree(old.folder / "keys", new.folder / "keys")
        new.run("authserver", "import", file)
        new.start("authserver")
        # After the restart it has no status lists, and fetches them from the new server.
        old.start("resourceserver")
        new.wait_until_ready("authserver")
        old.wait_until_ready("resourceserver")
        assert await status_once_known(http, old, kept) == 200
        assert await status_once_known(http, old, revoked) == 401
        assert await ping(http, old, await obtain(http, new, client)) == 200
    # It writes the events that are still in memory.
    new.stop()
    assert not list(new.folder.rglob("*.db")), "the new installation has no database file"
    issued = new.run_json("authserver", "audit", "--client", client["client_id"], "--action", "token.issue")
    assert len(issued) == 3, "the audit log continues"
