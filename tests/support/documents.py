"""What a document says to type, and a shell that types it."""

import re
import subprocess
from pathlib import Path

from local_stack import LocalStack

ROOT = Path(__file__).parents[2]

TIMEOUT = "300"
"""Seconds. Many commands start Python, and a machine may be busy."""


def commands(text: str) -> str:
    """Return every command of a document, or of a section of one, in order."""
    return "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))


def typed(script: str, stack: LocalStack, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder, on free ports in place of the default ones, and end what they started."""
    assert script.count("127.0.0.1") > 5
    for default, free in (("127.0.0.1:9000", stack.issuer[7:]), ("127.0.0.1:8000", stack.resource[7:-4])):
        script = script.replace(default, free)
    script = f"trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}\nwait"
    return subprocess.run(
        # `timeout` ends the servers, too, where a killed shell would leave them.
        ["timeout", TIMEOUT, "bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**stack.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
