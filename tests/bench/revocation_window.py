"""`make measure`: the revocation windows of a token, a client and a key under load, two workers for each server."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import anyio
from local_stack import LocalStack
from support.limits import VARIABLES
from support.revocation_window import measure


def main() -> None:
    """Measure, and print a line for each kind of revocation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30, help="revocations of each kind")
    parser.add_argument("--rate", type=float, default=20, help="background token requests, and calls, per second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gatehouse-measure-") as folder:
        stack = LocalStack(Path(folder), settings=VARIABLES)
        stack.init()
        try:
            stack.start_all()
            for what in ("token", "client", "key"):
                windows = anyio.run(partial(measure, stack, what, options.samples, apart=0.37, rate=options.rate))
                print(f"revocation window of a {windows.line()}", flush=True)
                print(f"  in the background: {windows.load.line()}", flush=True)
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
