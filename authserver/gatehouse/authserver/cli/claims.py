"""Reads the option `--claim NAME=VALUE`: claims of the tokens of a client, or those that a platform token must have."""

import click


def parse_claims(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return the values by name. A value may contain `=`. Raises BadParameter."""
    claims: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or name in claims:
            raise click.BadParameter("write NAME=VALUE, each name once")
        if value.endswith(("...", "\N{HORIZONTAL ELLIPSIS}")):
            raise click.BadParameter(f"replace the dots in {name} with the whole value")
        claims[name] = value
    return claims
