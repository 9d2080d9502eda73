"""Reads the JSON schema of a tool's arguments, to tell a caller which arguments exist."""

from collections.abc import Iterator, Mapping
from typing import Any

Location = tuple[int | str, ...]
"""Where a problem is, as pydantic reports it: names, positions in lists, and names of union members."""


def unknown_argument(input_schema: Mapping[str, Any], parent: Location = ()) -> str:
    """Say which arguments a tool has, or which members an argument of it has, after an unknown one was sent.

    Args:
        input_schema: the JSON schema of the tool's arguments.
        parent: where the argument with the unknown member is; empty for an unknown argument.
    """
    what, where = ("member", f"{'.'.join(map(str, parent))}: ") if parent else ("argument", "")
    names = ", ".join(dict.fromkeys(_names(input_schema, parent)))
    return f"{where}unknown {what}; " + (f"the {what}s are: {names}" if names else f"there are no {what}s")


def _names(root: Mapping[str, Any], location: Location) -> Iterator[str]:
    """Yield the names of the properties that the schema has at a location."""
    schemas = [*_alternatives(root, root)]
    for step in location:
        below = [child for schema in schemas for child in _children(schema, step)]
        # A step that leads nowhere names a member of a union.
        schemas = [part for child in below for part in _alternatives(child, root)] or schemas
    for schema in schemas:
        yield from schema.get("properties", {})


def _children(schema: Mapping[str, Any], step: int | str) -> Iterator[Mapping[str, Any]]:
    if isinstance(step, int):
        candidates = [*schema.get("prefixItems", ())[step : step + 1], schema.get("items")]
    else:
        candidates = [schema.get("properties", {}).get(step, schema.get("additionalProperties"))]
    yield from (candidate for candidate in candidates if isinstance(candidate, Mapping))


def _alternatives(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the schema, or those that it refers to or is one of."""
    if isinstance(reference := schema.get("$ref"), str):
        schema = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"), {})
    options = [option for keyword in ("anyOf", "oneOf") for option in schema.get(keyword, ())]
    if not options:
        yield schema
    for option in options:
        yield from _alternatives(option, root)
