"""An admin who changes secrets, keys, tokens and clients all the time, and checks that each change takes effect."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from local_stack import CommandRefused
from soak.traffic import Agent, Traffic, Unexpected, claims_of
from support.rotation import A_WHILE, Admin


class BusyAdmin(Admin):
    """Rotates secrets and keys, revokes tokens, and disables and enables a client, until cancelled."""

    def __init__(self, traffic: Traffic, disabled: Agent) -> None:
        """Create the admin. `disabled` is the client to disable and enable; all others belong to the traffic."""
        super().__init__(traffic.stack)
        self._traffic = traffic
        self._disabled = disabled
        self._names = (f"replaced-{number}.pem" for number in itertools.count())

    async def run(self) -> None:
        """Change things until cancelled. The signing key is rotated once: the next one signs 7 minutes later."""
        await self._attempt(self._rotate_signing_key)
        async with asyncio.TaskGroup() as tasks:
            for change in (self._rotate_secrets, self._replace_keys, self._revoke_token, self._disable_and_enable):
                tasks.create_task(self._repeat(change))

    async def _repeat(self, change: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._attempt(change)
            await asyncio.sleep(A_WHILE)

    async def _attempt(self, change: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._traffic.attempt(change)
        except CommandRefused as error:
            self._traffic.record.failures.append(str(error))

    async def _rotate_signing_key(self) -> None:
        await self.run_json("authserver", "key", "rotate")

    async def _rotate_secrets(self) -> None:
        for agent in self._traffic.by_secret:
            old = str(agent.secret)
            await self.rotate_secret(agent)
            await asyncio.sleep(A_WHILE)
            await self._traffic.try_wrong_secret("revoked secret", agent, old)

    async def _replace_keys(self) -> None:
        for agent in self._traffic.by_key:
            old = agent.private_key
            await self.replace_key(agent, next(self._names))
            await asyncio.sleep(A_WHILE)
            request = Agent(agent.client_id, private_key=old).token_request(self.stack.issuer)
            await self._traffic.send("revoked key", self._traffic.authserver, request, 401, '"invalid_client"')

    async def _revoke_token(self) -> None:
        token = await self._issue_and_call(self._traffic.revoker)
        await self.run_json("authserver", "token", "revoke", "--jti", claims_of(token)["jti"])
        await self._traffic.see_refused(token)

    async def _disable_and_enable(self) -> None:
        agent = self._disabled
        token = await self._issue_and_call(agent)
        await self.run_json("authserver", "client", "disable", agent.client_id)
        await self._traffic.see_refused(token)
        await self._traffic.try_wrong_secret("disabled client", agent, str(agent.secret))
        await self.run_json("authserver", "client", "enable", agent.client_id)
        await asyncio.sleep(A_WHILE)
        try:
            await self._issue_and_call(agent)
        except Unexpected as error:
            raise Unexpected(f"after the client was enabled: {error}") from None

    async def _issue_and_call(self, agent: Agent) -> str:
        token = await self._traffic.issue(agent)
        await self._traffic.call("whoami, 2026-07-28", token, "whoami", contained=agent.client_id)
        return token
