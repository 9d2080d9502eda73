"""Reads the option `--claim NAME=VALUE`: claims of the tokens of a client, or those that a platform token must have."""

import click

from gatehouse.shared.protocol.redaction import quoted


def parse_claims(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return the values by name. A value may contain `=`. Raises BadParameter."""
    claims: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"the claim {quoted(text)} has no value: write {quoted(text)}=VALUE")
        if name in claims:
            raise click.BadParameter(f"the claim {quoted(name)} is given twice: leave one out")
        if value.endswith(("...", "\N{HORIZONTAL ELLIPSIS}")):
            raise click.BadParameter(f"replace the dots in {name} with the whole value")
        claims[name] = value
    return claims
