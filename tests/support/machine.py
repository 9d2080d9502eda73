"""A machine in a folder, on which the commands of docs/deployment.md run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from support.certificates import Authority
from support.databases import PostgreSQL
from support.documents import ROOT, START_RETRIES, TIMEOUT
from support.forks import fork_server
from support.nginx import CONFIGURATION, NGINX, served_at
from support.redis_server import SERVER as REDIS

_NGINX_UNIT = """
[Service]
ExecStart={nginx} -c {root}/etc/nginx/nginx.conf -g 'daemon off;'
ExecReload=/bin/kill -HUP $MAINPID
"""


SHOWN_PORTS = {
    443: "auth",
    6379: "redis",
    8000: "resourceserver",
    9000: "authserver",
    9100: "authserver metrics",
    9101: "resourceserver metrics",
}
"""The ports of the page."""


_REDIS_CONFIGURATION = """
port {port}
dir {root}/run
save ""
"""

_REDIS_UNIT = """
[Service]
ExecStart={redis} {root}/etc/redis/redis.conf
"""


class Machine:
    """A folder in place of the file system of a machine.

    It has the files of deploy/, nginx, Redis and the programs of PostgreSQL, and stand-ins for systemctl and groupadd.
    """

    def __init__(
        self, root: Path, ports: Mapping[str, int], authority: Authority, postgresql: PostgreSQL, server: URL
    ) -> None:
        """`ports` are those of SHOWN_PORTS, and "mcp". `server` has a user who administers the database server."""
        self.root = root
        self.authority = authority
        self.ports = ports
        self._ports_by_shown = {str(shown): ports[name] for shown, name in SHOWN_PORTS.items()}
        issuer, resource = (f"127.0.0.1:{ports[name]}" for name in ("auth", "mcp"))
        socket = server.query["host"]
        programs = fork_server().program("authserver").parent
        self._replaced = {
            **served_at(issuer, resource),
            "auth.example.com": issuer,
            "mcp.example.com": resource,
            "@db.example.com/$server?sslmode=verify-full&sslrootcert=system": f"@/$server?host={socket}",
            "10.0.0.1": "127.0.0.1",
            r"10\.0\.0\.1": r"127\.0\.0\.1",
            "/etc/": f"{root}/etc/",
            "/var/lib/": f"{root}/var/lib/",
            "/var/backups/": f"{root}/var/backups/",
            "-g gatehouse-tls": "-g root",
            "/opt/gatehouse/bin": str(programs),
            "--retry 30": START_RETRIES,
            # For the requests during the rotation.
            "AUTHSERVER_BIND=": "AUTHSERVER_LIMIT_TOKEN_REQUESTS=off\nAUTHSERVER_BIND=",
        }
        for folder in (
            "etc/gatehouse",
            "etc/systemd/system",
            "etc/nginx/conf.d",
            "etc/nginx/gatehouse/tls",
            "etc/redis",
            "run",
        ):
            (root / folder).mkdir(parents=True)
        self._environment = {
            **{name: value for name, value in os.environ.items() if "SERVER_" not in name},
            "PATH": f"{root}/bin:{postgresql.programs}:{os.environ['PATH']}",
            "SYSTEMCTL_ROOT": str(root),
            "CURL_CA_BUNDLE": str(authority.file),
            "SSL_CERT_FILE": str(authority.file),
            "PGHOST": str(socket),
            "PGUSER": str(server.username),
        }
        self._install()

    def here(self, text: str) -> str:
        """Return a text with the folders, addresses and names of this machine."""
        text = re.sub(r":(\d+)\b", lambda port: f":{self._ports_by_shown.get(port[1], port[1])}", text)
        for shown, actual in self._replaced.items():
            text = text.replace(shown, actual)
        return text

    def _install(self) -> None:
        for source in (path for path in (ROOT / "deploy").rglob("*") if path.is_file()):
            target = self.root / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.here(source.read_text(encoding="utf-8")), encoding="utf-8")
            target.chmod(source.stat().st_mode)
        tls = self.root / "etc" / "nginx" / "gatehouse" / "tls"
        for name in ("certificate.pem", "key.pem"):
            (tls / name).write_bytes(self.authority.server_file.read_bytes())
        values = {"root": self.root, "nginx": NGINX}
        (self.root / "etc" / "nginx" / "nginx.conf").write_text(CONFIGURATION.format(**values))
        (self.root / "etc" / "systemd" / "system" / "nginx.service").write_text(_NGINX_UNIT.format(**values))
        values = {"root": self.root, "redis": REDIS, "port": self.ports["redis"]}
        (self.root / "etc" / "redis" / "redis.conf").write_text(_REDIS_CONFIGURATION.format(**values))
        (self.root / "etc" / "systemd" / "system" / "redis-server.service").write_text(_REDIS_UNIT.format(**values))
        programs = self.root / "bin"
        programs.mkdir()
        for name, command in {
            "systemctl": f'exec {sys.executable} {ROOT}/tests/support/systemctl.py "$@"',
            "groupadd": ":",
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
        there = f"sed 's|[0-9.]*:*{self.root}|{other.root}|g'"
        self.program("ssh", f'shift; cd {other.root}; SYSTEMCTL_ROOT={other.root} exec sh -c "$(echo "$*" | {there})"')
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

    @contextmanager
    def running(self, script: str) -> "Iterator[subprocess.Popen[str]]":
        """Run commands until they end, for longer than the block. Fails if one of them fails."""
        output = self.root / "output"
        with output.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                ["timeout", TIMEOUT, "bash", "-euo", "pipefail", "-c", script],
                cwd=self.root,
                env=self._environment,
                stdout=file,
                stderr=file,
                text=True,
            )
            try:
                yield process
            finally:
                process.wait()
        assert process.returncode == 0, output.read_text(encoding="utf-8") + self.logs()

    def run(self, script: str) -> None:
        """Run commands. Fails if one of them fails."""
        with self.running(script):
            pass

    def printed(self) -> str:
        """Return what the last commands printed."""
        return (self.root / "output").read_text(encoding="utf-8")
