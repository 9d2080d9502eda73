"""The main rows again, with both of our servers on PostgreSQL. The database server runs beside the load."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bench.row import Bench, Outcome, Row
from support.databases import running_postgresql

_DURABLE = "max_connections = 100"
"""The defaults of PostgreSQL otherwise: a commit waits for the disk."""


def on_postgresql(row: Row) -> Row:
    """Return a row whose servers use PostgreSQL. Its figures are reported, not judged."""
    return Row(f"{row.name}-postgresql", f"{row.title}, on PostgreSQL", partial(_run, row.run))


def _run(run: Callable[[Bench], Outcome], bench: Bench) -> Outcome:
    locks = bench.folder / "locks"
    locks.mkdir(mode=0o700)
    server = bench.exits.enter_context(running_postgresql(locks, _DURABLE))
    # Installations share no database.
    bench.settings = lambda: {
        f"{name}_DATABASE_URL": server.create_database().render_as_string(hide_password=False)
        for name in ("AUTHSERVER", "RESOURCESERVER")
    }
    outcome = run(bench)
    return replace(outcome, figures=[replace(figure, target=None) for figure in outcome.figures])
