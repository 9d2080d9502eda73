"""Why a tool could not do what it was asked. The text is for the agent: it says what to do next."""

from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.service.remediation import client_command


class DirectoryError(Exception):
    """The call was allowed and cannot be carried out. The message is public and repeats no argument."""

    remediation: str | None = None
    """For the operator, where an operator can fix it."""

    @property
    def reason(self) -> str:
        """What the audit log says."""
        return str(self)


class NotFound(DirectoryError):
    """There is no such object in the caller's workspace: it does not exist, or it is another's. The two are one."""

    def __init__(self, entity: str, list_tool: str) -> None:
        super().__init__(f"There is no such {entity} in this workspace. Call {list_tool} for those that exist.")


class Conflict(DirectoryError):
    """The object would contradict one that exists."""


class LimitReached(DirectoryError):
    """There are as many as there may be."""

    def __init__(self, limit: int, things: str) -> None:
        super().__init__(f"There can be at most {limit} {things}. Remove or change one that exists instead.")


class NoWorkspace(DirectoryError):
    """The token names no workspace, or one that does not exist. More scopes would not help, so this is no 403."""

    def __init__(self, claims: AccessClaims) -> None:
        self._workspace_id = claims.workspace_id
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
        """Name the claim, which an admin set."""
        if self._workspace_id is None:
            return "the token has no claim workspace_id"
        return f"workspace {self._workspace_id} does not exist"
