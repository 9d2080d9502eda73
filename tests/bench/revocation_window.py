"""`make measure`: the revocation windows of a token and of a client, both servers with two workers each."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import anyio
from local_stack import LocalStack
from support.revocation_window import measure


def main() -> None:
    """Measure, and print a line for each kind of revocation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30, help="revocations of each kind")
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory(prefix="gatehouse-measure-") as folder:
        stack = LocalStack(Path(folder))
        stack.init()
        try:
            stack.start_all()
            for what in ("token", "client"):
                windows = anyio.run(partial(measure, stack, what, samples, apart=0.37))
                print(f"revocation window of a {windows.line()}", flush=True)
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
