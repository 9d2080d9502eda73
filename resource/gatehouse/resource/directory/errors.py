"""Why a tool could not do what it was asked. The text is for the agent: it says what to do next."""


class DirectoryError(Exception):
    """The call was allowed and cannot be carried out. The message is public and repeats no argument."""


class NotFound(DirectoryError):
    """There is no such object in the caller's workspace: it does not exist, or it is another's. The two are one."""

    def __init__(self, noun: str, list_tool: str) -> None:
        super().__init__(f"There is no such {noun} in this workspace. Call {list_tool} for those that exist.")


class Conflict(DirectoryError):
    """The object would contradict one that exists."""


class LimitReached(DirectoryError):
    """There are as many as there may be."""

    def __init__(self, limit: int, things: str) -> None:
        super().__init__(f"There can be at most {limit} {things}. Remove or change one that exists instead.")


class NoWorkspace(DirectoryError):
    """The token names no workspace, or one that does not exist. More scopes would not help, so this is no 403."""

    def __init__(self, *, named: bool) -> None:
        problem = "The workspace of this client does not exist." if named else "This client acts in no workspace."
        super().__init__(
            f"{problem} Its admin creates one with 'resourceserver workspace create' and "
            "registers the client with '--claim workspace_id=wks_...'."
        )
