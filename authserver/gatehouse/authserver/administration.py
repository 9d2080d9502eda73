"""Refusals of changes by an admin."""

MAX_NAME = 128
"""Characters."""


class Refused(Exception):
    """A change is refused. The message is for the admin and says how to fix it."""


def check_name(entity: str, name: str) -> None:
    """Check the name of a client or a resource. Raises Refused."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise Refused(f"A {entity} name is 1 to {MAX_NAME} printable characters.")
