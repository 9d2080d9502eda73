"""What admins are refused."""

MAX_NAME = 128
"""Characters of the name of a client or resource."""


class Refused(Exception):
    """The change was not made. The message is for the admin and says how to fix it."""


def check_name(entity: str, name: str) -> None:
    """Check what people will call a client or a resource. Raises Refused."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise Refused(f"A {entity} name is 1 to {MAX_NAME} printable characters.")
