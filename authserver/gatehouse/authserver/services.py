"""What the endpoints work with, made once in every process."""

from dataclasses import dataclass

from gatehouse.authserver.authlib_server import AuthlibServer
from gatehouse.authserver.clients.authentication import ClientAuthenticator
from gatehouse.authserver.credentials.last_use import LastUse
from gatehouse.authserver.credentials.resource_credentials import ResourceAuthenticator
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.keys.rotation import Rotation
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.authserver.maintenance import Maintenance
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.status_lists import StatusListPublisher
from gatehouse.authserver.tokens.validation import TokenReader
from gatehouse.shared.service.audit_writer import AuditWriter


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running authorization server."""

    settings: Settings
    database: Database
    authenticator: ClientAuthenticator
    keys: KeyStore
    rotation: Rotation
    maintenance: Maintenance
    authlib: AuthlibServer
    audit: AuditWriter
    tokens: TokenReader
    status_lists: StatusListPublisher
    resource_authenticator: ResourceAuthenticator
    last_use: LastUse
