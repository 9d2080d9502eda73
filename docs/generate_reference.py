"""Generate docs/reference from the code: settings, commands, tools, audit actions, metrics, error codes, tests.

    python docs/generate_reference.py

`make docs` runs it, and tests/test_documentation.py fails while a committed page differs from what it generates.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gatehouse.authserver.cli import main as authserver
from gatehouse.authserver.metrics import METRICS as AUTHSERVER_METRICS
from gatehouse.authserver.settings import Settings as AuthServerSettings
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.cli import main as resourceserver
from gatehouse.resourceserver.metrics import METRICS as RESOURCE_SERVER_METRICS
from gatehouse.resourceserver.settings import Settings as ResourceServerSettings
from gatehouse.shared.service.audit.events import AUTHSERVER_ACTIONS, RESOURCE_SERVER_ACTIONS
from gatehouse.shared.service.metrics import Metric

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reference"
SOURCES = (ROOT / "authserver", ROOT / "resource", ROOT / "shared")
WIDTH = 100
"""Columns of the help texts."""

SETTINGS = (
    ("authserver", AuthServerSettings),
    ("resourceserver", ResourceServerSettings),
    ("resourceserver bridge and resourceserver token", BridgeSettings),
)

ACTIONS = {
    "audit.prune": "An admin deleted old audit events.",
    "audit_key.rotate": "An admin added a new audit key, which authenticates further events.",
    "client.create": "An admin registered a client.",
    "client.delete": "An admin deleted a client; its tokens are revoked.",
    "client.disable": "An admin disabled a client; its tokens are revoked.",
    "client.enable": "An admin enabled a client.",
    "client.grant.add": "An admin granted scopes at a resource to a client.",
    "client.grant.remove": "An admin removed scopes at a resource from a client.",
    "client.key.revoke": "An admin revoked a public key of a client.",
    "client.key.rotate": "An admin replaced the public keys of a client.",
    "client.secret.revoke": "An admin revoked a secret of a client.",
    "client.secret.rotate": "An admin replaced the secret of a client.",
    "client.trust.add": "An admin added a trust rule: platform tokens with these claims authenticate a client.",
    "client.trust.remove": "An admin removed a trust rule of a client.",
    "client.update": "An admin changed a client.",
    "http.request": "A request was refused before an endpoint handled it: unknown path, wrong method, wrong host.",
    "installation.export": "An admin exported the installation.",
    "installation.import": "An admin imported an installation.",
    "installation.restore": "An admin accepted a restored backup; all tokens are revoked.",
    "issuer.add": "An admin added a trusted issuer: a platform whose tokens authenticate workloads.",
    "issuer.disable": "An admin disabled a trusted issuer; its tokens are refused.",
    "issuer.enable": "An admin enabled a trusted issuer.",
    "issuer.remove": "An admin removed a trusted issuer and its trust rules.",
    "issuer.update": "An admin changed the keys or the limits of a trusted issuer.",
    "key.activate": "A published signing key began to sign.",
    "key.create": "A signing key was created and published.",
    "key.remove": "A retired signing key was removed from the key set.",
    "key.retire": "A signing key stopped signing; it stays published until its last token expires.",
    "key.revoke": "An admin revoked a signing key and every token that it signed.",
    "mcp.request": "A request to the MCP endpoint was refused before it named a tool or a resource.",
    "resource.add": "An admin registered a resource.",
    "resource.credential.create": "An admin created an introspection credential for a resource.",
    "resource.credential.revoke": "An admin revoked an introspection credential.",
    "resource.credential.rotate": "An admin replaced an introspection credential.",
    "resource.read": "A client read an MCP resource, or the request was refused.",
    "resource.remove": "An admin removed a resource, its scopes and every grant at it.",
    "resource.update": "An admin changed the name or the scopes of a resource.",
    "sealing_key.rotate": "An admin replaced the sealing key.",
    "token.introspect": "A resource introspected a token, or the request was refused.",
    "token.issue": "A client obtained a token, or the request was refused; or an admin issued a token.",
    "token.revoke": "A client or an admin revoked a token, or every token of a client.",
    "tool.call": "A client called a tool. The call was allowed, was refused, or failed.",
    "workspace.create": "An admin created a workspace.",
}

OAUTH_ERRORS = {
    "invalid_request": "400, 405, 413, 415. The request is malformed. `error_description` says what to send.",
    "invalid_client": "401. Client authentication failed. The audit log names the check that failed.",
    "invalid_grant": "400. A platform token is refused as a grant. The audit log names the check that failed.",
    "invalid_scope": "400. None of the requested scopes is granted, or a strict client requested one that is not.",
    "invalid_target": "400. The resource is unknown, not granted to the client, or ambiguous (RFC 8707).",
    "unsupported_grant_type": (
        "400. Send `grant_type=client_credentials`, or, with a platform token, "
        "`grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer`."
    ),
    "unsupported_response_type": "400. The authorization code grant is not supported. Use client credentials.",
    "temporarily_unavailable": (
        "503 with `Retry-After`: the database cannot be reached. 429 with `Retry-After`: too many requests. Retry."
    ),
    "server_error": "500. An unexpected error. The log has the traceback, with the request id.",
}

RPC_ERRORS = {
    "PARSE_ERROR": (400, "The body is not strict JSON."),
    "INVALID_REQUEST": (400, "Not one JSON-RPC request. Also with HTTP 405, 406, 413 and 415."),
    "METHOD_NOT_FOUND": (
        404,
        "The method is not in the closed table. In versions up to 2025-11-25: HTTP 200, and 400 for a notification.",
    ),
    "INVALID_PARAMS": (400, "Malformed `params`, an unknown tool or an unknown resource."),
    "HEADER_MISMATCH": (400, "A header of MCP 2026-07-28 is missing, contradicts the body, or appears twice."),
    "UNAUTHENTICATED": (401, "No access token, or one that is not valid here. See `WWW-Authenticate`."),
    "INSUFFICIENT_SCOPE": (
        403,
        "The token lacks scopes. `data.scope` and `WWW-Authenticate` name all that are needed.",
    ),
    "TOO_MANY_REQUESTS": (429, "Past a limit. The call was not executed. Wait as `Retry-After` and the message say."),
    "UNAVAILABLE": (
        503,
        "The server cannot decide now: it has no key, no recent status list, or cannot write its audit log. Retry.",
    ),
}


def settings_page() -> str:
    """Return the settings of every program."""
    lines = [
        "# Settings",
        "",
        "Settings are environment variables, or `NAME=VALUE` lines of the file named by `--env-file`. Environment",
        "variables take precedence. One file may contain the settings of all programs. Every command checks all",
        "settings, including misspelled names, and reports all problems at once. `authserver check --explain` and",
        "`resourceserver check --explain` print each setting with its value and its source.",
        "",
        "A setting marked *secret* can be in a file of its own, as systemd, Kubernetes and Compose mount secrets: set",
        "`NAME_FILE`, such as `AUTHSERVER_DATABASE_URL_FILE=/run/secrets/database-url`, and not `NAME`. The file is",
        "read once, at the start. It belongs to the user of the program and only it has access, or it belongs to root",
        "and at most its group may read it.",
    ]
    for program, settings in SETTINGS:
        rows = [
            (
                f"`{settings.variable(name)}`",
                _default(field),
                _description(field) + (" *Secret.*" if name in settings.confidential else ""),
            )
            for name, field in settings.model_fields.items()
        ]
        lines += ["", f"## {program}", "", *_table(("Variable", "Default", "Meaning"), rows)]
    return _page(lines)


def _default(field: FieldInfo) -> str:
    return "" if field.default in (None, "", PydanticUndefined) else f"`{field.default}`"


def _description(field: FieldInfo) -> str:
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    low, high = getattr(bounds.get("Ge"), "ge", None), getattr(bounds.get("Le"), "le", None)
    return f"{field.description} {low} to {high}." if low is not None else str(field.description)


def cli_page() -> str:
    """Return the help of every command of both programs."""
    lines = [
        "# Command line",
        "",
        "Every command has `--help`, and most have `--output table|json`.",
        "Exit codes: 0 success, 1 failure or refusal, 2 usage error.",
    ]
    for program, group in (("authserver", authserver), ("resourceserver", resourceserver)):
        lines += ["", f"## {program}", *_help(group, program, None)]
    return _page(lines)


def _help(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=WIDTH)
    if parent is not None:
        yield from ("", f"### {context.command_path}")
    yield from ("", "```text", *(line.rstrip() for line in command.get_help(context).splitlines()), "```")
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None, child_name  # noqa: S101 - the group listed it
            yield from _help(child, child_name, context)


def tools_page() -> str:
    """Return the tools and scopes of the bundled catalogue."""
    scopes = [
        (f"`{scope.scope}`", scope.description, ", ".join(f"`{implied}`" for implied in sorted(scope.implies)))
        for scope in CATALOGUE.scopes.values()
    ]
    tools = [
        (
            f"`{tool.name}`",
            " ".join(f"`{scope}`" for scope in sorted(tool.scopes)) or "any valid token",
            "streaming" if tool.streaming else "read" if tool.read_only else "write",
            tool.description.partition("\n\n")[0],
        )
        for tool in CATALOGUE.tools.values()
    ]
    return _page(
        [
            "# Tools of the bundled directory",
            "",
            "The catalogue `gatehouse.directory.catalogue`. Tools work in the workspace that the token names.",
            "Every `write` tool accepts an `idempotency_key`. `resourceserver tools --output json` prints the schemas.",
            "",
            "## Scopes",
            "",
            *_table(("Scope", "Allows", "Implies"), scopes),
            "",
            "## Tools",
            "",
            *_table(("Tool", "Scopes", "Kind", "What it does"), tools),
        ]
    )


def audit_page() -> str:
    """Return the audit actions of both servers. Raises KeyError for one without a description."""
    lines = [
        "# Audit actions",
        "",
        "Each event has a time, an actor (a `client_id`, `admin:NAME`, or `claimed:CLIENT_ID` where authentication",
        "failed), an object, an outcome (`allowed`, `refused`, `failed`), the `jti` of the token, a request id, a",
        "reason, and a JSON detail. `--action` of `authserver audit` and `resourceserver audit` filters by action.",
    ]
    for program, actions in (("authserver", AUTHSERVER_ACTIONS), ("resourceserver", RESOURCE_SERVER_ACTIONS)):
        rows = [(f"`{action!s}`", ACTIONS[str(action)]) for action in sorted(map(str, actions))]
        lines += ["", f"## {program}", "", *_table(("Action", "Recorded when"), rows)]
    return _page(lines)


TABLES = {
    "client_id": "the client_ids of METRICS_CLIENTS",
    "gen_ai_tool_name": "the tools of the catalogue",
}
"""The tables of labels that are known only when a server starts."""


def metrics_page() -> str:
    """Return the metrics of both servers. Raises KeyError for a label without a table and without a description."""
    lines = [
        "# Metrics",
        "",
        "[Operations](../operations.md#metrics) says how to read them. Each label has the values of its table.",
        "Anything else counts as `_OTHER`, and what does not apply is empty.",
    ]
    for program, metrics in (("authserver", AUTHSERVER_METRICS), ("resourceserver", RESOURCE_SERVER_METRICS)):
        rows = [
            (
                f"`{metric.name}`",
                metric.kind,
                ", ".join(f"`{label}`" for label in metric.labels),
                f"{metric.meaning}{_buckets(metric)}",
            )
            for metric in metrics
        ]
        values = [
            (f"`{metric.name}`", f"`{label}`", ", ".join(f"`{value}`" for value in table) or TABLES[label])
            for metric in metrics
            for label, table in metric.labels.items()
        ]
        lines += ["", f"## {program}", "", *_table(("Metric", "Type", "Labels", "Meaning"), rows)]
        lines += ["", *_table(("Metric", "Label", "Values"), values)]
    return _page(lines)


def _buckets(metric: Metric) -> str:
    bounds = ", ".join(f"{bound:g}" for bound in metric.buckets)
    return f" Buckets: {bounds} seconds." if bounds else ""


def errors_page() -> str:
    """Return the error codes of both servers. Raises KeyError for one without a description."""
    oauth = [(f"`{code}`", OAUTH_ERRORS[code]) for code in sorted(oauth_codes())]
    rpc = [(f"`{getattr(json_rpc, name)}`", str(status), meaning) for name, (status, meaning) in RPC_ERRORS.items()]
    return _page(
        [
            "# Error codes",
            "",
            "Every error response carries a request id. `authserver audit --request ID` and",
            "`resourceserver audit --request ID` show the reason and the remediation of a refused request.",
            "",
            "## authserver",
            "",
            "JSON with `error`, `error_description` and `request_id` (RFC 6749, section 5.2).",
            "",
            *_table(("error", "HTTP status and meaning"), oauth),
            "",
            "## resourceserver",
            "",
            "A JSON-RPC error at the MCP endpoint. `data` has `request_id`, and `error` and `scope` where they apply.",
            "",
            *_table(("code", "HTTP status", "Meaning"), rpc),
            "",
            "Errors of a tool, invalid arguments included, are results with `isError: true` and HTTP status 200.",
        ]
    )


def oauth_codes() -> set[str]:
    """Return every code that the authorization server raises an OAuthError with."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "authserver").rglob("*.py")))
    codes = {
        node.args[0].value
        for node in ast.walk(ast.parse("\n".join(_without_future_imports(source))))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "OAuthError"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    return {code for code in codes if isinstance(code, str)}


def _without_future_imports(source: str) -> Iterator[str]:
    return (line for line in source.splitlines() if not line.startswith("from __future__"))


def covering_tests(marker: str) -> Mapping[str, Sequence[str]]:
    """Return the tests that carry a marker, by the ids that the marker names: `file::test`, sorted."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if f"mark.{marker}(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for identifier in _marked(node.decorator_list, marker):
                    found.setdefault(identifier, []).append(f"{file.relative_to(ROOT)}::{node.name}")
    return {identifier: sorted(tests) for identifier, tests in sorted(found.items())}


def _marked(decorators: Iterable[ast.expr], marker: str) -> Iterator[str]:
    for decorator in decorators:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{marker}":
            yield from (str(argument.value) for argument in decorator.args if isinstance(argument, ast.Constant))


def documented(document: str, pattern: str) -> Mapping[str, str]:
    """Return the titles of a document's entries by id."""
    return dict(re.findall(pattern, (ROOT / "docs" / document).read_text(encoding="utf-8"), flags=re.MULTILINE))


def threats() -> Mapping[str, str]:
    """Return the title of each threat of the threat model by id."""
    return documented("threat-model.md", r"^### (T-\d{3}): (.+)$")


def divergences() -> Mapping[str, str]:
    """Return the departure of each entry of the divergences by id."""
    return documented("divergences.md", r"^\| (D-\d\d) \| (.+?) \| .+ \|$")


def tests_page() -> str:
    """Return the index of the tests that cover threats and divergences."""
    lines = [
        "# Covering tests",
        "",
        "The tests of each [threat](../threat-model.md) and each [divergence](../divergences.md). Tests name them",
        'with the markers `@pytest.mark.threat("T-001")` and `@pytest.mark.divergence("D-01")`.',
    ]
    for heading, entries, marker in (
        ("Threats", threats(), "threat"),
        ("Divergences", divergences(), "divergence"),
    ):
        tests = covering_tests(marker)
        lines += ["", f"## {heading}"]
        for identifier, title in entries.items():
            lines += ["", f"**{identifier}** {title}", "", *(f"- `{test}`" for test in tests.get(identifier, ()))]
    return _page(lines)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(headings)
    yield _row(["---"] * len(headings))
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def _page(lines: Iterable[Any]) -> str:
    return "\n".join(lines) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "cli.md": cli_page,
    "tools.md": tools_page,
    "audit.md": audit_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "tests.md": tests_page,
}


def main() -> None:
    """Write every page."""
    TARGET.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (TARGET / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
