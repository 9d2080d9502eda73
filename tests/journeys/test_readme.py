"""What the README says to type works."""

import re
import subprocess
import sys
from pathlib import Path

from local_stack import LocalStack

ROOT = Path(__file__).parents[2]


def tour() -> str:
    """Return every command of the five-minute tour, in order."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Five-minute tour")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL))


def test_the_five_minute_tour_does_what_it_says(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tour()
    assert script.count("127.0.0.1") > 5
    for default, free in (("127.0.0.1:9000", stack.issuer[7:]), ("127.0.0.1:8000", stack.resource[7:-4])):
        script = script.replace(default, free)
    environment = {**stack.environment, "AGENT_RESOURCE": stack.resource, "AGENT_ISSUER": stack.issuer}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}\nwait"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in (
        'www-authenticate: Bearer scope="env:read env:write org:read org:write", resource_metadata=',
        '"authorization_servers"',
        '"token_endpoint"',
        "\nenv:read\n",
        "agent: created:",
        "client.grant.add",
    ):
        assert expected in done.stdout, expected
    assert re.search(r"tool\.call +create_environment +allowed", done.stdout)
    assert re.search(r"\nreason +no token\n(.*\n)*mend +Obtain a token with resource=", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


def test_the_demo_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        cwd=tmp_path,
        env={**LocalStack(tmp_path).environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    story = ["resourceserver is ready", "-> 401", "token obtained", "-> 403", "is refused", "grant add", "created:"]
    positions = [done.stdout.find(part) for part in story]
    assert -1 not in positions, dict(zip(story, positions, strict=True))
    assert positions == sorted(positions)
    assert re.search(r"tool\.call +create_environment +refused +needs env:write", done.stdout)
    assert list(tmp_path.iterdir()) == []
