"""The commands of a document, and a shell that runs them."""

import re
import subprocess
import sys
from pathlib import Path

from local_stack import LocalStack

from support.forks import PROGRAMS, fork_server

ROOT = Path(__file__).parents[2]

TIMEOUT = "600"
"""Seconds. Many commands start Python, and a machine may be busy."""

START_RETRIES = "--retry 300"
"""In place of the 30 seconds that a document gives a server to start, for the same reason."""


def commands(text: str) -> str:
    """Return the contents of every `sh` block of a document, in order."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))


def link_working_copy(folder: Path) -> None:
    """Give a folder the `.venv` and the examples of a working copy. Both programs start quickly there."""
    installed, linked = Path(sys.prefix), folder / ".venv"
    (linked / "bin").mkdir(parents=True)
    for path in (*installed.iterdir(), *(installed / "bin").iterdir()):
        link = linked / path.relative_to(installed)
        if path.name in PROGRAMS:
            link.symlink_to(fork_server().program(path.name))
        elif path.name != "bin":
            link.symlink_to(path)
    (folder / "examples").symlink_to(ROOT / "examples")


def typed(script: str, stack: LocalStack, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder, on free ports instead of the default ones, and stop the servers that they started."""
    for default, free in (("127.0.0.1:9000", stack.issuer[7:]), ("127.0.0.1:8000", stack.resource[7:-4])):
        assert default in script
        script = script.replace(default, free)
    script = script.replace("--retry 30", START_RETRIES)
    script = f"trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}\nwait"
    return subprocess.run(
        # `timeout` also ends the servers; killing the shell alone would leave them running.
        ["timeout", TIMEOUT, "bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**stack.environment, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
