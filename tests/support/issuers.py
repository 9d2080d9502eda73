"""A trusted issuer whose keys a server of the tests fetches from a real server."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import event, update

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads.key_fetching import KeySetClient
from gatehouse.authserver.workloads.key_renewal import KeyRenewal
from gatehouse.authserver.workloads.registration import remove_issuer
from gatehouse.authserver.workloads.registry import KeyLocation, TrustedIssuer, load_issuers
from gatehouse.shared.protocol.jws import SigningKey
from support.authserver import AuthServer
from support.document_server import Answer, DocumentServer
from support.platforms import Platform
from support.workloads import trust

PATH = "/openid/v1/jwks"


class FetchedIssuer:
    """A platform that publishes its keys on a server, and is trusted with those that it has now."""

    def __init__(self, server: AuthServer, platform: Platform, documents: DocumentServer, **changes: Any) -> None:
        """Publish the keys of the platform, and trust it. `changes` are to the location of the keys."""
        self.server = server
        self.platform = platform
        self.documents = documents
        self.name = platform.name
        where = {"discovery": False, "jwks_uri": f"{documents.url}{PATH}", "ca_file": None, "bearer_token_file": None}
        self.location = KeyLocation(**{**where, **changes})
        self.publish()
        self.trust()

    def trust(self) -> None:
        """Add it as a trusted issuer."""
        trust(self.server, self.platform, location=self.location)

    def remove(self) -> None:
        """Remove it from the trusted issuers."""
        with self.server.services.database.write() as session:
            remove_issuer(session, self.server.admin, self.name)

    def publish(self, document: bytes | None = None) -> None:
        """Serve a key set, by default the one that the platform publishes now."""
        self.documents.answers[PATH] = Answer(self.platform.jwks() if document is None else document)

    def rotate(self) -> SigningKey:
        """Let the platform publish a new key and sign with it."""
        key = self.platform.rotate()
        self.publish()
        return key

    def go_down(self) -> None:
        """Serve no keys any more."""
        self.documents.answers[PATH] = Answer(status=503)

    def stored(self) -> TrustedIssuer:
        """Return what is stored of it."""
        with self.server.services.database.connect() as connection:
            return next(issuer for issuer in load_issuers(connection) if issuer.name == self.name)

    def kids(self) -> set[str]:
        """Return the names of the stored keys."""
        return set(self.stored().keys)

    def usable(self) -> set[str]:
        """Return the names of the keys that tokens are verified with now."""
        return set(self.stored().usable_keys(self.server.clock()))

    @property
    def fetches(self) -> int:
        """How many requests for its keys arrived."""
        return len(self.documents.requests)


class Node:
    """What fetches key sets on one node of a server."""

    def __init__(self, server: AuthServer) -> None:
        self.database = Database(server.settings.database, pool_size=3)
        self.client = KeySetClient()
        self.renewal = KeyRenewal(self.database, server.clock, self.client.fetch, self.client.stop)

    def close(self) -> None:
        self.renewal.stop()
        self.database.close()


@contextmanager
def nodes(server: AuthServer, number: int) -> Iterator[list[Node]]:
    """Yield several nodes on the database of a server."""
    running = [Node(server) for _ in range(number)]
    try:
        yield running
    finally:
        for node in running:
            node.close()


LOOK_FOR_ISSUERS = "SELECT trusted_issuer.name"
LOOK_FOR_ANOTHER_NODE = "SELECT trusted_issuer.attempted_at"


@contextmanager
def looking(database: Database, statement: str = LOOK_FOR_ANOTHER_NODE) -> Iterator[threading.Event]:
    """Yield an event that is set when a statement that begins like this one is executed."""
    looked = threading.Event()

    def note(_connection: Any, _cursor: Any, executed: str, *_: Any) -> None:
        if executed.startswith(statement):
            looked.set()

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield looked
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[DocumentServer]:
    """Run a server of documents."""
    with closing(DocumentServer(tls)) as server:
        yield server


def change(issuer: FetchedIssuer, /, **values: Any) -> None:
    """Change what is stored of an issuer."""
    with issuer.server.services.database.write() as session:
        session.execute(update(TrustedIssuerRow).where(TrustedIssuerRow.name == issuer.name).values(**values))
