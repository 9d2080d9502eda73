"""The commands of docs/deployment.md lead from one machine to two nodes."""

import json
import re
import ssl
import subprocess
import tempfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from local_stack import free_port
from support.certificates import Authority
from support.databases import PostgreSQL
from support.documents import ROOT, TIMEOUT, commands
from support.machine import SHOWN_PORTS, Machine
from support.nginx import NGINX
from support.redis_server import SERVER as REDIS
from support.waiting import wait_until

SECOND_NODE = "On the second node:"
_PAUSE = 0.1
"""Seconds between two token requests."""

RESTORE = "### Restore"
ROTATION = "## Rotate the sealing key"
UPGRADE = "## Upgrade"
WITHOUT_PROXY = "## TLS without a proxy"
TWO_NODES = "## Two nodes"
STARTED = "Start the servers."
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")

NEW_MARK = """
mark={root}/var/lib/gatehouse-restore-mark/restore-mark.json
cp $mark $mark.old
try_it
timeout 60 sh -c "while cmp -s $mark $mark.old; do sleep 0.1; done"
"""
"""Waits until the node has seen an event that is not in the backup."""

ONLY_OWNERS = """
test -z "$(psql --tuples-only --dbname postgres --command "SELECT datname FROM pg_database
    WHERE datname IN ('authserver', 'resourceserver') AND has_database_privilege('public', datname, 'CONNECT')")"
"""
"""Fails if any role may connect to the databases."""


@pytest.fixture
def machines(postgresql: PostgreSQL, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with one database server. The first reaches the second by ssh."""
    server = postgresql.create_database()
    ports = {name: free_port() for name in ("mcp", *SHOWN_PORTS.values())}
    authority = Authority(tmp_path)
    with tempfile.TemporaryDirectory(prefix="gatehouse-") as folder:
        first, second = (
            Machine(Path(folder) / name, ports, authority, postgresql, server) for name in ("first", "second")
        )
        first.reach(second)
        try:
            yield first, second
        finally:
            for machine in (second, first):
                machine.stop()
            postgresql.drop_database(server)


class TokenRequests:
    """Obtains one token after the other, from when the commands create one file until they create another."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._context = ssl.create_default_context(cafile=machine.authority.file)
        self.begin, self.end = (machine.root / name for name in ("rotation-begins", "rotation-ends"))
        self.statuses: Counter[int] = Counter()

    def send(self, process: "subprocess.Popen[str]") -> None:
        """Send them, for as long as the process runs."""
        wait_until(lambda: self.begin.exists() or process.poll() is not None, float(TIMEOUT))
        while not self.end.exists() and process.poll() is None:
            self.statuses[self._obtain()] += 1
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PAUSE)

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
@pytest.mark.skipif(REDIS is None, reason="needs redis-server or valkey-server")
def test_the_page_leads_from_one_machine_to_two_nodes(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    requests = TokenRequests(first)
    one_machine, _, rest = PAGE.partition(WITHOUT_PROXY)
    before, _, after = (one_machine + rest.partition(TWO_NODES)[2]).partition(SECOND_NODE)
    on_second, heading, after = after.partition("\n### ")
    after, _, restore = after.partition(RESTORE)
    restore, _, rotation = restore.partition(ROTATION)
    rotation, _, end = rotation.partition(UPGRADE)
    script = "\n".join(
        [
            first.here(commands(before)),
            f"(cd {second.root}; export SYSTEMCTL_ROOT={second.root}; {second.here(commands(on_second))})",
            first.here(commands(heading + after)),
            ONLY_OWNERS,
            NEW_MARK.format(root=first.root),
            first.here(commands(restore)),
            ONLY_OWNERS,
            f"touch {requests.begin}",
            first.here(commands(rotation)),
            f"touch {requests.end}",
            first.here(commands(end)),
        ]
    )
    with first.running(script) as process:
        requests.send(process)
    assert "Traceback" not in first.logs() + second.logs()
    assert first.printed().count('"structuredContent"') == 7, (
        "the client calls on one machine, after the move, with two nodes, with one of them, before and after the "
        "restore, and after the rotation of the sealing key"
    )
    assert set(requests.statuses) == {200}, requests.statuses
    assert requests.statuses.total() > 20
    secrets = {path.name for path in (first.root / "deploy" / "secrets").iterdir()}
    assert {Path(file).name for file in re.findall(r"file: (./secrets/\S+)}", COMPOSE)} == secrets - {"tls"}


def test_a_server_without_a_proxy_serves_renewed_certificates(machines: tuple[Machine, Machine]) -> None:
    machine, _ = machines
    lineage = Path(machine.here("/etc/letsencrypt/live/auth.example.com"))
    lineage.mkdir(parents=True)

    def obtain_certificate() -> None:
        for name in ("fullchain.pem", "privkey.pem"):
            (lineage / name).write_bytes(machine.authority.server_file.read_bytes())

    obtain_certificate()
    installed, _, rest = PAGE.partition(STARTED)
    start = "cp deploy/systemd/authserver.service /etc/systemd/system/\nsystemctl start authserver\n"
    section = rest.partition(WITHOUT_PROXY)[2].partition(TWO_NODES)[0]
    machine.run(machine.here(f"{commands(installed)}{start}{commands(section)}"))
    address = ("127.0.0.1", machine.ports["auth"])
    before = ssl.get_server_certificate(address)
    machine.authority.renew()
    obtain_certificate()
    machine.run(f"RENEWED_LINEAGE={lineage} {machine.root}/etc/letsencrypt/renewal-hooks/deploy/gatehouse")
    wait_until(lambda: ssl.get_server_certificate(address) != before)
    assert "Traceback" not in machine.logs()
