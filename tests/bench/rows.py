"""All rows of the benchmark, in the order of the report."""

from functools import partial

from bench import (
    call_rows,
    document_rows,
    gateway_rows,
    growth_rows,
    operation_rows,
    outage_rows,
    platform_rows,
    token_rows,
)
from bench.database_rows import on_postgresql
from bench.row import Row

_TOKEN_ROWS = (
    Row("token-secret", "`/token`, client_secret_basic", token_rows.by_secret_row),
    Row("token-jwt", "`/token`, private_key_jwt, a new assertion each", token_rows.by_key_row),
)

_CALL_ROWS = (
    Row("whoami-2026", "`tools/call` whoami, 2026-07-28", partial(call_rows.whoami, "2026-07-28")),
    Row("whoami-2025", "`tools/call` whoami, 2025-11-25", partial(call_rows.whoami, "2025-11-25")),
    Row("list-environments", "`tools/call` list_environments, which reads the directory", call_rows.list_environments),
)

_GATEWAY_ROWS = (
    Row("gateway-http", "`tools/call` through the gateway, to a server over HTTP", gateway_rows.over_http),
    Row("gateway-stdio", "`tools/call` through the gateway, to a program on stdio", gateway_rows.over_stdio),
)

_DOCUMENT_ROWS = (
    Row(
        "document-keys",
        "`/.well-known/jwks.json`",
        partial(document_rows.document, "authserver", "/.well-known/jwks.json"),
    ),
    Row(
        "document-metadata",
        "`/.well-known/oauth-authorization-server`",
        partial(document_rows.document, "authserver", "/.well-known/oauth-authorization-server"),
    ),
    Row(
        "document-resource",
        "`/.well-known/oauth-protected-resource/mcp`",
        partial(document_rows.document, "resourceserver", "/.well-known/oauth-protected-resource/mcp"),
    ),
)

_GROWTH_ROWS = (
    Row("growth-clients", "`/token`, 1 to 1,000,000 clients", growth_rows.more_clients),
    Row(
        "growth-token-audit",
        "`/token`, 0 to 1,000,000 audit events",
        partial(growth_rows.more_audit_rows_of_tokens, 1_000_000, growth_rows.GROWN),
    ),
    Row("growth-call-audit", "`tools/call` whoami, 0 to 1,000,000 audit events", growth_rows.more_audit_rows_of_calls),
    Row(
        "growth-10m",
        "`/token`, 0 to 10,000,000 audit events",
        partial(growth_rows.more_audit_rows_of_tokens, 10_000_000, None),
    ),
)

ROWS = (
    *_TOKEN_ROWS,
    Row("token-platform", "`/token`, the token of a cluster", platform_rows.reusable),
    Row("token-platform-once", "`/token`, a new token of a CI job each", platform_rows.single_use),
    Row("token-clients", "`/token`, 20,000 of 100,000 clients in turn", growth_rows.many_clients),
    *_CALL_ROWS,
    Row("overhead", "Gate, policy, audit log and log line of a call", call_rows.overhead),
    Row("whoami-tokens", "`tools/call` whoami, 1,000 tokens in turn", growth_rows.many_tokens),
    *_GATEWAY_ROWS,
    *_DOCUMENT_ROWS,
    *_GROWTH_ROWS,
    Row("audit-delay", "From a request to its visible audit event", operation_rows.audit_delay),
    Row("livez-locked", "`/livez` while the database is locked", outage_rows.locked_database),
    Row("start", "Start to ready, and short commands", operation_rows.starting),
    *map(on_postgresql, (*_TOKEN_ROWS, *_CALL_ROWS)),
)
