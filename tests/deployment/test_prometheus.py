"""The rules and the dashboard of deploy/, with the distribution's Prometheus and both servers.

On Debian: apt install prometheus.
"""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_stack import free_port
from support.measured_stack import MeasuredStack, status_of
from support.platform_server import SystemClock, move, published, serving
from support.platforms import oidc
from support.waiting import wait_until

from gatehouse.resourceserver.metrics import UPSTREAM_LISTED, UPSTREAM_TOOLS

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yaml"

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")


class Prometheus:
    """A running Prometheus that scrapes both servers once a second."""

    def __init__(self, folder: Path, stack: MeasuredStack) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = (DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8")
        config = config.replace("interval: 15s", "interval: 1s").replace("alerts.yaml", str(RULES))
        for address, bind in zip(("127.0.0.1:9100", "127.0.0.1:9101"), stack.binds.values(), strict=True):
            assert config.count(f'"{address}"') == 1
            config = config.replace(f'"{address}"', f'"{bind}"')
        file = folder / "prometheus.yaml"
        file.write_text(config, encoding="utf-8")
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: status_of(f"http://{self.address}/-/ready") == 200)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}") as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result

    def returns(self, expression: str) -> bool:
        return bool(self.query(expression))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, and both servers under a little of every traffic that the panels show."""
    folder = tmp_path_factory.mktemp("prometheus")
    stack = MeasuredStack(folder / "stack")
    server = None
    try:
        trust_a_platform(stack)
        send(stack)
        server = Prometheus(folder, stack)
        # A rate is computed from two values, and the second one must be larger.
        wait_until(lambda: len(server.query("up == 1")) == 2)
        send(stack)
        yield server
    finally:
        if server is not None:
            server.stop()
        stack.stack.stop()


def trust_a_platform(stack: MeasuredStack) -> None:
    """Add a trusted issuer whose keys are fetched once, by the command."""
    platform = oidc(SystemClock())
    with serving(lambda asked: published(platform, asked.path)) as url:
        move(platform, url)
        stack.stack.run("authserver", "issuer", "add", "login", "--kind", "oidc", "--issuer", url)


def send(stack: MeasuredStack) -> None:
    assert (stack.post_token(), stack.post_token("gths_wrong")) == (200, 401)
    token = stack.access_token()
    statuses = [stack.post_mcp(token), stack.post_mcp(token, "list_environments"), stack.post_mcp(token, "none")]
    assert [*statuses, stack.post_mcp()] == [200, 200, 400, 401]


def queries_of_the_dashboard() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "gatehouse.json").read_text(encoding="utf-8"))
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def test_the_rules_pass_their_own_tests() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True)
    subprocess.run(["promtool", "test", "rules", "alerts_test.yaml"], check=True, cwd=RULES.parent)


def test_the_rules_and_their_tests_name_the_same_alerts() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
    tested = re.findall(
        r"alertname: (\w+)\n +exp_alerts", RULES.with_name("alerts_test.yaml").read_text(encoding="utf-8")
    )
    assert len(alerts) == 15
    assert set(alerts) == set(tested)


def test_every_query_of_the_dashboard_returns_data(prometheus: Prometheus) -> None:
    queries = queries_of_the_dashboard()
    assert len(queries) > 20
    for expression in queries:
        try:
            wait_until(lambda expression=expression: prometheus.returns(expression), 15)
        except TimeoutError:
            pytest.fail(f"no data: {expression}")


def test_every_metric_of_an_alert_exists_and_no_alert_fires(prometheus: Prometheus) -> None:
    names = set(re.findall(r"\b(?:gatehouse|mcp)_\w+", RULES.read_text(encoding="utf-8"))) - {"gatehouse"}
    # These servers are no gateway (tests/resourceserver/test_metrics.py).
    names -= {UPSTREAM_TOOLS.name, UPSTREAM_LISTED.name}
    assert len(names) > 8
    for name in sorted(names):
        wait_until(lambda name=name: prometheus.returns(name), 15)
    assert prometheus.query('ALERTS{alertstate="firing"}') == []


def test_the_documented_queries_return_data(prometheus: Prometheus) -> None:
    page = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("\n## Metrics")[2].partition("\n## ")[0]
    queries = re.findall(r"^\| [^`|]+ \| `([^`]+)` \|$", section, re.MULTILINE)
    assert len(queries) == section.count("\n| ") - 1, "every row of the table but its header"
    for expression in queries:
        wait_until(lambda expression=expression: prometheus.returns(expression), 15)
