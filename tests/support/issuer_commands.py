"""Trusted issuers of an installation: added by commands, with keys that are served or changed afterwards."""

import json
from typing import Any

from sqlalchemy import create_engine, update

from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads.key_fetching import METADATA
from support.document_server import Answer, DocumentServer
from support.platforms import Platform
from support.shell import Shell


def write_jwks(shell: Shell, platform: Platform) -> str:
    """Write the key set of a platform to a file, and return its path."""
    file = shell.folder / f"{platform.name}.json"
    file.write_bytes(platform.jwks())
    return str(file)


def add(shell: Shell, platform: Platform, *options: str) -> Any:
    """Add a platform with its keys in a file, and return what is printed."""
    return shell.json(*adding(shell, platform), *options)


def adding(shell: Shell, platform: Platform) -> list[str]:
    """Return the command that adds a platform with its keys in a file."""
    keys = ["--jwks-file", write_jwks(shell, platform)]
    return ["issuer", "add", platform.name, "--issuer", platform.issuer, "--kind", platform.kind, *keys]


def change(shell: Shell, **values: Any) -> None:
    """Change the stored issuers, as the fetches of a server do."""
    engine = create_engine(shell.environment["AUTHSERVER_DATABASE_URL"])
    with engine.begin() as connection:
        connection.execute(update(TrustedIssuerRow).values(**values))
    engine.dispose()


def serve(documents: DocumentServer, platform: Platform) -> None:
    """Serve the metadata and the keys of a platform."""
    metadata = {"issuer": documents.url, "jwks_uri": f"{documents.url}/keys"}
    documents.answers = {METADATA: Answer(json.dumps(metadata).encode()), "/keys": Answer(platform.jwks())}
