"""What commands print: one record, or a table of records, for people, as JSON for programs, or as CSV."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from gatehouse.shared.protocol.redaction import as_word, printable

PROGRESS_EVERY: Final = 100_000
"""Rows after which a long command reports its progress."""

_FORMULA = re.compile("((?:^|[;|\t\r\n])[ \t\"']*)(?=[=+@\t\r\uff1d\uff0b\uff0d\uff20-])")
"""The place in a cell where a formula would start: at its beginning, or after what another locale splits cells at."""


def print_record(record: Mapping[str, Any], output: str) -> None:
    """Print one record: JSON, or a line for each member."""
    if output == "json":
        click.echo(json.dumps(record, indent=2))
        return
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        click.echo(f"{name:<{width}}  {cell_text(value)}")


def print_records(records: Sequence[Mapping[str, Any]], columns: Sequence[str], output: str) -> None:
    """Print records: JSON with every member, or a table of the named columns."""
    if output == "json":
        click.echo(json.dumps(list(records), indent=2))
        return
    if not records:
        click.echo("(none)")
        return
    print_table(columns, [[record.get(column) for column in columns] for record in records])


def print_table(columns: Sequence[str], values: Sequence[Sequence[Any]]) -> None:
    """Print rows under the names of their columns. Names may repeat, and both may be text that others chose."""
    # Imported here, because only a table needs it.
    from rich.cells import cell_len  # noqa: PLC0415

    lines = [[printable(column) for column in columns], *([cell_text(value) for value in row] for row in values)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    is_bold = sys.stdout.isatty()
    for line in lines:
        # One line for each record, with whole values: the next command could not use a client_id that was cut.
        padded = (f"{cell}{' ' * (width - cell_len(cell))}" for cell, width in zip(line, widths, strict=True))
        text = "  ".join(padded).rstrip(" ")
        click.echo(click.style(text, bold=True) if is_bold else text)
        is_bold = False


def report_progress(done: int, rows: str) -> None:
    """Report on a terminal, from time to time, how many rows a long command has read or written.

    `rows` says of what: events, or the name of a table.
    """
    if done % PROGRESS_EVERY == 0 and sys.stderr.isatty():
        click.echo(f"{done} {rows}", err=True)


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows as CSV below a line with the names of their columns. A spreadsheet runs no cell as a formula."""
    # Every cell is quoted: a spreadsheet may also split cells at a semicolon or a tab.
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(map(_csv_cell, columns))
    for row in rows:
        writer.writerow(map(_csv_cell, row))


def _csv_cell(value: Any) -> str:
    """Return a cell that a spreadsheet does not run as a formula (CWE-1236). Objects and lists are JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _FORMULA.sub(r"\1'", json.dumps(value) if isinstance(value, Mapping | list) else str(value))


def cell_text(value: Any) -> str:
    """Return a value as tables show it: printable, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{printable(str(name))}={_item(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return " ".join(cell_text(item) for item in value) or "-"
    return printable(str(value))


def _item(value: Any) -> str:
    """Return the value of a member. A reader must see where a text ends, because spaces also separate the members."""
    return as_word(cell_text(value)) if isinstance(value, str) else cell_text(value)
