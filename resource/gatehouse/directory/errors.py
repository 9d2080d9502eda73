"""Errors of the directory's tools. The text is for the agent and says what to do next."""

from gatehouse.shared.protocol.claims import WORKSPACE_CLAIM, AccessClaims
from gatehouse.shared.service.remediation import client_command


class DirectoryError(Exception):
    """The call was allowed and failed. The message is public and repeats no argument."""

    remediation: str | None = None
    """What an operator can do about it, if anything."""

    @property
    def reason(self) -> str:
        """The reason in the audit log."""
        return str(self)


class NotFound(DirectoryError):
    """The caller's workspace has no such object. Objects of other workspaces get the same message."""

    def __init__(self, entity: str, list_tool: str) -> None:
        super().__init__(f"There is no such {entity} in this workspace. Call {list_tool} for those that exist.")


class Conflict(DirectoryError):
    """The object conflicts with an existing one."""


class LimitReached(DirectoryError):
    """The maximum number of objects exists already."""

    def __init__(self, limit: int, things: str) -> None:
        super().__init__(f"There can be at most {limit} {things}. Remove or change an existing one instead.")


class NoWorkspace(DirectoryError):
    """The token names no workspace, or one that does not exist. Not a 403, because more scopes would not help."""

    def __init__(self, claims: AccessClaims) -> None:
        self._workspace_id = claims.static.get(WORKSPACE_CLAIM)
        problem = "This client acts in no workspace."
        if self._workspace_id is not None:
            problem = "The workspace of this client does not exist."
        super().__init__(
            f"{problem} Its admin creates one with 'resourceserver workspace create' and "
            "registers the client with '--claim workspace_id=wks_...'."
        )
        update = client_command("update", claims.client_id)
        self.remediation = f"{update} --claim workspace_id=..., with an id from: resourceserver workspace list"

    @property
    def reason(self) -> str:
        """The reason in the audit log. It contains the claim, which an admin has set."""
        if self._workspace_id is None:
            return "the token has no claim workspace_id"
        return f"workspace {self._workspace_id} does not exist"
