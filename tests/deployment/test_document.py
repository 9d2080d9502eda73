"""The commands of docs/deployment.md lead from one machine to two nodes."""

import json
import os
import ssl
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from local_stack import BIN, free_port
from sqlalchemy import URL
from support.certificates import Authority
from support.databases import PostgreSQL
from support.documents import ROOT, START_RETRIES, TIMEOUT, commands
from support.nginx import CONFIGURATION, NGINX, served_at
from support.waiting import wait_until

SECOND_NODE = "On the second node:"
ROTATION = "## Rotate the sealing key"
UPGRADE = "## Upgrade"

NGINX_UNIT = """
[Service]
ExecStart={nginx} -c {root}/etc/nginx/nginx.conf -g 'daemon off;'
ExecReload=/bin/kill -HUP $MAINPID
"""


class Machine:
    """A folder in place of the file system of a machine, with nginx, a stand-in for systemctl, and the programs."""

    def __init__(self, root: Path, ports: dict[str, int], server: URL) -> None:
        self.root = root
        issuer, resource = (f"127.0.0.1:{ports[name]}" for name in ("auth", "mcp"))
        socket = server.query["host"]
        self._replaced = {
            **served_at(issuer, resource),
            "auth.example.com": issuer,
            "mcp.example.com": resource,
            "@db.example.com/$server?sslmode=verify-full&sslrootcert=system": f"@/$server?host={socket}",
            ":9000": f":{ports['authserver']}",
            ":8000": f":{ports['resourceserver']}",
            "10.0.0.1": "127.0.0.1",
            r"10\.0\.0\.1": r"127\.0\.0\.1",
            "/etc/": f"{root}/etc/",
            "/var/lib/": f"{root}/var/lib/",
            "/opt/gatehouse/bin": str(BIN),
            "--retry 30": START_RETRIES,
            # For the requests during the rotation.
            "AUTHSERVER_BIND=": "AUTHSERVER_LIMIT_TOKEN_REQUESTS=off\nAUTHSERVER_BIND=",
        }
        for folder in ("etc/gatehouse", "etc/systemd/system", "etc/nginx/conf.d", "etc/nginx/gatehouse/tls", "run"):
            (root / folder).mkdir(parents=True)

    def here(self, text: str) -> str:
        """Return a text with the folders, addresses and names of this machine."""
        for shown, actual in self._replaced.items():
            text = text.replace(shown, actual)
        return text

    def install(self, authority: Authority) -> None:
        """Install what the page expects of a machine, and a working copy."""
        for source in (path for path in (ROOT / "deploy").rglob("*") if path.is_file()):
            target = self.root / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.here(source.read_text(encoding="utf-8")), encoding="utf-8")
            target.chmod(source.stat().st_mode)
        tls = self.root / "etc" / "nginx" / "gatehouse" / "tls"
        for name in ("certificate.pem", "key.pem"):
            (tls / name).write_bytes(authority.server_file.read_bytes())
        values = {"root": self.root, "nginx": NGINX}
        (self.root / "etc" / "nginx" / "nginx.conf").write_text(CONFIGURATION.format(**values))
        (self.root / "etc" / "systemd" / "system" / "nginx.service").write_text(NGINX_UNIT.format(**values))
        programs = self.root / "bin"
        programs.mkdir()
        for name, command in {
            "systemctl": f'exec {sys.executable} {ROOT}/tests/support/systemctl.py "$@"',
            "nginx": f'exec {NGINX} -c {self.root}/etc/nginx/nginx.conf "$@"',
        }.items():
            self.program(name, command)

    def program(self, name: str, command: str) -> None:
        """Install a program that runs a command of the shell."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\nset -e\n{command}\n", encoding="utf-8")
        path.chmod(0o755)

    def reach(self, other: "Machine") -> None:
        """Install stand-ins for ssh and scp that reach another machine, whatever the host that is named."""
        there = f"sed 's|[0-9.]*:{self.root}|{other.root}|'"
        self.program("ssh", f'shift; cd {other.root}; SYSTEMCTL_ROOT={other.root} exec "$@"')
        self.program("scp", f'exec cp "$1" "$2" "$(echo "$3" | {there})"')

    def stop(self) -> None:
        """Stop every unit."""
        names = [path.stem for path in (self.root / "run").glob("*.pid")]
        environment = {**os.environ, "SYSTEMCTL_ROOT": str(self.root)}
        subprocess.run(
            [sys.executable, ROOT / "tests/support/systemctl.py", "stop", *names], env=environment, check=True
        )

    def logs(self) -> str:
        """Return the logs of all units."""
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.root.glob("*.log")))


@pytest.fixture
def machines(postgresql: PostgreSQL) -> Iterator[tuple[Machine, Machine, URL]]:
    """Two machines and the database server of both."""
    server = postgresql.create_database()
    ports = {name: free_port() for name in ("auth", "mcp", "authserver", "resourceserver")}
    with tempfile.TemporaryDirectory(prefix="gatehouse-") as folder:
        first, second = (Machine(Path(folder) / name, ports, server) for name in ("first", "second"))
        try:
            yield first, second, server
        finally:
            for machine in (second, first):
                machine.stop()
            postgresql.drop_database(server)


class TokenRequests:
    """Obtains one token after the other, from when the commands create one file until they create another."""

    def __init__(self, machine: Machine, context: ssl.SSLContext) -> None:
        self._machine = machine
        self._context = context
        self.begin, self.end = (machine.root / name for name in ("rotation-begins", "rotation-ends"))
        self.statuses: Counter[int] = Counter()

    def send(self, process: "subprocess.Popen[str]") -> None:
        """Send them, for as long as the process runs."""
        wait_until(lambda: self.begin.exists() or process.poll() is not None, float(TIMEOUT))
        while not self.end.exists() and process.poll() is None:
            self.statuses[self._obtain()] += 1

    def _obtain(self) -> int:
        client = json.loads((self._machine.root / "etc/gatehouse/first-agent.json").read_bytes())
        credentials = b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
        request = Request(self._machine.here("https://auth.example.com/token"), b"grant_type=client_credentials")
        request.add_header("Authorization", f"Basic {credentials}")
        try:
            with urlopen(request, context=self._context, timeout=30) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_the_page_leads_from_one_machine_to_two_nodes(machines: tuple[Machine, Machine, URL], tmp_path: Path) -> None:
    first, second, server = machines
    authority = Authority(tmp_path)
    for machine in (first, second):
        machine.install(authority)
    first.reach(second)
    requests = TokenRequests(first, ssl.create_default_context(cafile=authority.file))
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    before, _, after = page.partition(SECOND_NODE)
    on_second, heading, after = after.partition("\n### ")
    after, _, rotation = after.partition(ROTATION)
    rotation, _, end = rotation.partition(UPGRADE)
    script = "\n".join(
        [
            first.here(commands(before)),
            f"(cd {second.root}; export SYSTEMCTL_ROOT={second.root}; {second.here(commands(on_second))})",
            first.here(commands(heading + after)),
            f"touch {requests.begin}",
            first.here(commands(rotation)),
            f"touch {requests.end}",
            first.here(commands(end)),
        ]
    )
    with (tmp_path / "output").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["timeout", TIMEOUT, "bash", "-euo", "pipefail", "-c", script],
            cwd=first.root,
            env={
                **{name: value for name, value in os.environ.items() if "SERVER_" not in name},
                "PATH": f"{first.root}/bin:{BIN}:{os.environ['PATH']}",
                "SYSTEMCTL_ROOT": str(first.root),
                "CURL_CA_BUNDLE": str(authority.file),
                "SSL_CERT_FILE": str(authority.file),
                "PGHOST": str(server.query["host"]),
                "PGUSER": str(server.username),
            },
            stdout=output,
            stderr=output,
            text=True,
        )
        requests.send(process)
        status = process.wait()
    printed = (tmp_path / "output").read_text(encoding="utf-8")
    logs = first.logs() + second.logs()
    assert status == 0, printed + logs
    assert "Traceback" not in logs
    assert printed.count('"structuredContent"') == 4, (
        "the client calls before the move, after it, with one node, and after the rotation of the sealing key"
    )
    assert set(requests.statuses) == {200}, requests.statuses
    assert requests.statuses.total() > 20
