"""The calling client."""

from pydantic import BaseModel, Field

from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, ToolGroup
from gatehouse.shared.protocol.claims import WORKSPACE_CLAIM, AccessClaims

tools = ToolGroup()


class Identity(BaseModel):
    """The calling client, according to its access token."""

    client_id: str
    scopes: list[str] = Field(description="Scopes of the token, sorted.")
    workspace_id: str | None = Field(description="The workspace that every other tool works in.")
    expires_at: int = Field(description="When the token expires, in seconds since 1970-01-01T00:00:00Z.")


@tools.tool(scopes=ANY_VALID_TOKEN, read_only=True)
async def whoami(claims: AccessClaims) -> Identity:
    """Return your identity: your client_id, the scopes and expiry of your token, and your workspace.

    Call it first if another tool is rejected or missing: the scopes decide what you may call.
    """
    return Identity(
        client_id=claims.client_id,
        scopes=sorted(claims.scope),
        workspace_id=claims.static.get(WORKSPACE_CLAIM),
        expires_at=claims.exp,
    )
