"""An admin who rotates keys and credentials with the commands of a running installation."""

import json
from pathlib import Path
from typing import Any, Protocol

import anyio
from local_stack import LocalStack

from gatehouse.shared.protocol.jws import SigningKey

A_WHILE = 5.0
"""Seconds that an agent uses the old credential while the new one exists, and the new one while the old one does."""


class Agent(Protocol):
    """A client with its current credential."""

    client_id: str
    secret: str | None
    private_key: Path | None


class Admin:
    """Rotates credentials and keys, and waits until the server has applied the change."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack
        self.commands = 0

    async def run_json(self, *arguments: str) -> Any:
        """Run a command, and return its parsed output. Raises CommandRefused."""
        output = await anyio.to_thread.run_sync(self.stack.run_json, *arguments)
        self.commands += 1
        return output

    async def keys(self) -> dict[str, str]:
        """Return the state of each signing key by its kid."""
        return {key["kid"]: key["state"] for key in await self.run_json("authserver", "key", "list")}

    async def rotate_key(self) -> str:
        """Rotate the signing key, wait until the new one signs, and return its kid."""
        kid: str = (await self.run_json("authserver", "key", "rotate"))["kid"]
        while (await self.keys())[kid] != "active":  # noqa: ASYNC110 - another process decides it
            await anyio.sleep(1)
        return kid

    async def rotate_secret(self, agent: Agent) -> None:
        """Create a secret, give it to the agent after a delay, and revoke the old one after another delay."""
        secret = ("authserver", "client", "secret")
        (old,) = [known for known in await self.run_json(*secret, "list", agent.client_id) if not known["expires_at"]]
        made = await self.run_json(*secret, "rotate", agent.client_id, "--grace-period", "7d")
        await anyio.sleep(A_WHILE)
        agent.secret = made["client_secret"]
        await anyio.sleep(A_WHILE)
        await self.run_json(*secret, "revoke", agent.client_id, old["secret_id"], "--yes")

    async def replace_key(self, agent: Agent, name: str) -> None:
        """Replace an agent's key in the same way."""
        key, private, public = SigningKey.generate("ES256"), self.stack.folder / name, self.stack.folder / "jwks.json"
        private.write_bytes(key.private_pem())
        public.write_text(json.dumps({"keys": [key.public_jwk()]}))
        client_key = ("authserver", "client", "key")
        (old,) = [
            known for known in await self.run_json(*client_key, "list", agent.client_id) if not known["expires_at"]
        ]
        await self.run_json(*client_key, "rotate", agent.client_id, "--jwks", str(public), "--grace-period", "7d")
        await anyio.sleep(A_WHILE)
        agent.private_key = private
        await anyio.sleep(A_WHILE)
        await self.run_json(*client_key, "revoke", agent.client_id, old["thumbprint"], "--yes")
