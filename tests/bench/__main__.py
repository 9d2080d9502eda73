"""Compare the CPU time per request of both servers with that of other projects (`make bench`; docs/performance.md)."""

import argparse
import datetime as dt
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import peers
from bench.contest import Schedule
from bench.load import generator
from bench.report import DOCUMENT, RESULTS, failed_as_json, in_document, row_as_json, tables
from bench.row import Bench, Row
from bench.rows import ROWS
from bench.servers import LOAD_CPU, SERVER_CPU
from soak import report as soak_report


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="`make bench` installs the peers, and passes ROWS, ROUNDS and SECONDS on: "
        "make bench ROWS=token-secret,whoami-2026 ROUNDS=3 SECONDS=2",
    )
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--rows", default="", help="rows to measure, separated by commas (default: all); docs/performance.md names them"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server (default: 5)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds of a round (default: 3)")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=5,
        help="seconds of load before the first round (default: 5); 0 to check only that a row runs",
    )
    parser.add_argument("--output", type=Path, help="file for the results (JSON); the plots are written to its folder")
    parser.add_argument(
        "--document",
        action="store_true",
        help=f"measure nothing; update docs/{DOCUMENT.name} from results.json and soak.json",
    )
    options = parser.parse_args()
    options.chosen = options.rows.split(",") if options.rows else names
    if unknown := sorted(set(options.chosen) - set(names)):
        parser.error(f"no such row: {', '.join(unknown)}; there are: {', '.join(names)}")
    if (options.output or options.document) and find_spec("matplotlib") is None:
        parser.error("the plots need matplotlib, which `make bench` installs")
    return options


def progress(text: str) -> None:
    """Print a line at once."""
    print(f"  {text}", flush=True)


def measure(row: Row, schedule: Schedule, missing: list[str]) -> dict[str, Any]:
    """Run a row. A row that fails says why, and the next one runs."""
    print(f"{row.name}: {row.title}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gatehouse-bench-") as folder, ExitStack() as exits:
        bench = Bench(Path(folder), schedule, exits, progress, missing=missing)
        try:
            outcome = row.run(bench)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this row, the others can be measured
            progress(f"FAILED: {type(error).__name__}: {error}")
            return failed_as_json(row, str(error))
    for figure in outcome.figures:
        target = "" if figure.target is None else f", goal {figure.target.goal:g}, bound {figure.target.bound:g}"
        progress(f"{figure.label}: {figure.value:.2f} {figure.unit}{target}: {figure.verdict}")
    return row_as_json(row, outcome)


def main() -> None:
    """Measure the chosen rows. Exit code 1 if a bound is missed, or a row could not be measured."""
    options = parse()
    if options.document:
        update_document()
        return
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("The benchmark needs two CPUs: one for the server, one for the load.")
    os.sched_setaffinity(0, {LOAD_CPU})
    schedule = Schedule(options.rounds, options.seconds, options.warm_up)
    print(f"CPU {SERVER_CPU} serves, CPU {LOAD_CPU} sends with {generator()}; {schedule}", flush=True)
    missing: list[str] = []
    rows = [measure(row, schedule, missing) for row in ROWS if row.name in options.chosen]
    result = {"measured": {**_circumstances(schedule, missing), "others": _others(rows)}, "rows": rows}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.output.resolve() == RESULTS:
            update_document()
        else:
            draw_plots(rows, options.output.parent)
    print(f"\n{tables(rows)}")
    for absent in missing:
        print(f"not installed: {absent}")
    failed = [row["name"] for row in rows if "failed" in row or "MISSED" in _verdicts(row)]
    sys.exit(f"missed or not measured: {', '.join(failed)}" if failed else 0)


def _others(rows: list[dict[str, Any]]) -> float:
    """Return the largest share of the servers' CPU that other processes used, of the medians of all servers."""
    return max((one["median"]["others"] for row in rows for one in row["servers"].values()), default=0.0)


def _verdicts(row: dict[str, Any]) -> list[str]:
    return [figure["verdict"] for figure in row["figures"]]


def draw_plots(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """Draw the plots of the results into a folder. Return their file names."""
    # Not at the top of the file, because --help must work before `make bench` has installed matplotlib.
    from bench.plot import draw

    return [plot.name for plot in draw(rows, folder)]


def update_document() -> None:
    """Draw the plots of the results and of the soak that docs/performance.md shows, and write its tables."""
    if RESULTS.exists():
        result = json.loads(RESULTS.read_text(encoding="utf-8"))
        plots = draw_plots(result["rows"], RESULTS.parent)
        DOCUMENT.write_text(in_document(result, plots), encoding="utf-8")
    if (recording := soak_report.read()) is not None:
        from soak import plot as soak_plot

        soak_plot.draw(recording, soak_report.RECORDING.with_suffix(".png"))
        text = soak_report.in_document(DOCUMENT.read_text(encoding="utf-8"), recording)
        DOCUMENT.write_text(text, encoding="utf-8")


def _circumstances(schedule: Schedule, missing: list[str]) -> dict[str, Any]:
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "load": generator(),
        "rounds": schedule.rounds,
        "seconds": schedule.seconds,
        "warm_up": schedule.warm_up,
        "peers": {peer.name: _versions(peer) for peer in peers.ALL},
        "missing": missing,
    }


def _versions(peer: peers.Peer) -> str:
    try:
        return peer.versions()
    except peers.NotInstalled as reason:
        return str(reason)


if __name__ == "__main__":
    main()
